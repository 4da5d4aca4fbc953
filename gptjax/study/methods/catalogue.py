"""The methods of `gptjax study fit` by name, in the order in which they are fitted.

To add one, derive a class from method.Method (or from a method that is here) and name it in METHODS. An entry is the
class, or where it is to be found, "module:Class": then its numerics are imported when it is used.
"""

from gptjax import errors

METHODS = {
    "parametric": "gptjax.study.methods.parametric:Parametric",
    "isoflop": "gptjax.study.methods.isoflop:IsoFlop",
    "kaplan": "gptjax.study.methods.kaplan:Kaplan",
    "envelope": "gptjax.study.methods.envelope:Envelope",
}


def of(name: str):
    """The method.Method of a name that METHODS has. Raises UserError: its entry names nothing that can be imported."""
    entry = METHODS[name]
    return (errors.imported(entry, f"fit method {name}") if isinstance(entry, str) else entry)()


def by_default() -> tuple[str, ...]:
    """The names of the methods that are fitted unless others are asked for."""
    return tuple(name for name in METHODS if of(name).by_default)


def by_rank() -> dict:
    """{name: method}, those that can make a headline first: the order in which a report takes them."""
    return dict(sorted(((name, of(name)) for name in METHODS), key=lambda item: item[1].no_headline is not None))
