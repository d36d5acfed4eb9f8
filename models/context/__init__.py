"""The context modules with which the paper compares criss-cross attention (Table 4); they keep channels and size."""
