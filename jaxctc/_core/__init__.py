"""The private core: everything that the public topics of `jaxctc` are built on.

problem      what a CTC graph is, as arrays
emissions    from the arguments of a public function to such a problem
recursion    forward-backward, any semiring; `paths` follows single paths through it
semirings    how the weights of paths are multiplied and added up
derivatives  how JAX differentiates what was computed in numbers that it cannot see through
lean         array operations that leave one equation in the program, where jnp's leave several
kernels      the implementations of the loss: one file for each schedule of the recursion; those
             of TPUs and GPUs are chosen when a program is lowered
"""
