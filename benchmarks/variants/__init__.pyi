from .race import race_variants as race_variants
