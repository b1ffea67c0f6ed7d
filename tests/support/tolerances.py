"""How much vectors may differ, and why."""

# With equal float32 weights, only the order of summation differs between kernels of different
# shapes: about 1e-7 per component.
FLOAT32_COSINE = 0.99999
# Raw scores are about 1 in either direction: measured 2e-6.
FLOAT32_SCORE = 1e-4
# A float16 output rounds each component to 11 bits, about 5e-4 of it.
FLOAT16_COSINE = 0.999
# Products of numbers with 8 significant bits, summed in float32: measured 0.99999 with the nano
# model's one layer, 0.99992 with four layers of random weights.
BFLOAT16_COSINE = 0.9999
# Activations of 8 bits too, with a scale for each token and 128 values: 0.9996 and 0.9991.
INT8_COSINE = 0.999
# CONTRACT: every vector has norm 1 within this.
UNIT_NORM = 1e-5
