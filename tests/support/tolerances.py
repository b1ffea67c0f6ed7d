"""How far vectors may lie apart, and why; one place."""

# Equal weights in float32: what is left is the order of summation in differently shaped kernels,
# about 1e-7 a component.
FLOAT32_COSINE = 0.99999
# A float16 output rounds each component to 11 bits, about 5e-4 of it.
FLOAT16_COSINE = 0.999
# CONTRACT: every vector has norm 1 within this.
UNIT_NORM = 1e-5
