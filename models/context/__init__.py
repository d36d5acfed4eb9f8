"""The context modules that Table 4 of the paper compares with criss-cross attention."""
