"""What a traced function consists of."""

from jax.extend.core import jaxprs_in_params


def equations(jaxpr):
    """Every equation of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def scans(jaxpr):
    return [equation for equation in equations(jaxpr) if equation.primitive.name == "scan"]


def shapes(values):
    return [value.aval.shape for value in values]


def dtypes(jaxpr):
    """Names of the dtypes of all values."""
    return {
        str(value.aval.dtype)
        for equation in equations(jaxpr)
        for value in (*equation.invars, *equation.outvars)
    }
