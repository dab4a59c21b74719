"""The calling conventions of other libraries, one module each.

An adapter only puts arguments into the form of `jaxctc` and results into the form of the library
that it is named after, which it does not import. So a program that comes from there changes one
import:

    from jaxctc.adapters.optax import ctc_loss

What an adapter cannot do as its library does, it does as `jaxctc` does, and its docstring says so.
An argument that it cannot honour raises `ValueError`.
"""
