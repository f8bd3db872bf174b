"""The compiled pass: a whole decoder in one function of vector code, for CPUs with AVX-512, VNNI and bfloat16.

On such a CPU torch runs a small model's pass at a fraction of its speed: each operation is handed to threads anew,
reads and writes memory, and a matrix library knows nothing of what surrounds a product. Here one function, compiled
by Numba, runs on every thread from the embedding to the logits, and meets the others at barriers. The reference is
`bough.models.decoder` with `bough.engine.attention`, which it is tested against.

    simd       vectors of 16 lanes for Numba, and what one instruction does
    tiles      products of a few rows with a few panels of packed weights, sums in registers
    products   linear layers in 16, 8 and 4 bits; norms
    attend     attention of many queries to keys where they lie in the pool
    forward    the pass
    plan       which queries attend to which stretch of keys
    team       the threads;  barrier: where they meet
    records    what the compiled code is told
    runner     a decoder and its working memory, for the engine
    support    what it can run
"""
