"""How large is the program that JAX traces? Its equations, on the way to one platform.

Tracing, lowering and compiling take time that grows with them. Nothing is compiled to count them,
and no compiler has to be installed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params


def count_equations(function: Callable[..., Any], arguments: Any, platform: str) -> int:
    """Every equation, those of inner programs once each, whatever a loop makes of them.

    Of what `jax.lax.platform_dependent` chooses from, the branch of the platform alone.
    """
    return sum(1 for _ in _equations(jax.make_jaxpr(function)(*arguments).jaxpr, platform))


def _equations(jaxpr: Jaxpr, platform: str) -> Iterator[Any]:
    choices = {}
    for equation in jaxpr.eqns:
        yield equation
        inner = list(jaxprs_in_params(equation.params))
        if equation.primitive.name == "platform_index":
            choices[equation.outvars[0]] = equation.params["platforms"]
        elif equation.primitive.name == "cond" and equation.invars[0] in choices:
            branches = choices[equation.invars[0]]
            inner = [inner[_index(branches, platform)]]
        for part in inner:
            yield from _equations(part, platform)


def _index(branches: Any, platform: str) -> int:
    """Which branch is taken: the first that names the platform, or all platforms (None)."""
    return next(i for i, names in enumerate(branches) if names is None or platform in names)
