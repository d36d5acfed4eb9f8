"""Context modules that the paper compares with criss-cross attention (Table 4); they preserve channels and size."""
