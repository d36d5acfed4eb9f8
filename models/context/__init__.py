"""Context modules that the paper compares criss-cross attention with (Table 4); each keeps channels and size."""
