"""Tools over a shop's file of orders: {"A1001": {"item", "status", "arrives" or "delivered", "returned"?}, ...}, JSON.

A return is written into the file, by replacing it whole: a reader sees the old or the new one. Two that return at the same time
may lose one of the two: a shop has a data base.
"""

import json
import os
import pathlib

from gptjax.errors import UserError, shorten


def status(path: str, order: str) -> str:
    """A sentence. Raises UserError: no such order."""
    found, number = _order(_read(path), order)
    if "returned" in found:
        return f"Order {number} ({found['item']}) is on its way back: {found['returned']}."
    when = f"delivered on {found['delivered']}" if "delivered" in found else f"arrives on {found['arrives']}"
    return f"Order {number} ({found['item']}) is {found['status']}; {when}."


def send_back(path: str, order: str, reason: str) -> str:
    """Registers a return. Raises UserError: no such order, one that is not delivered, or is returned already."""
    orders = _read(path)
    found, number = _order(orders, order)
    if "returned" in found:
        raise UserError(f"order {number} is returned already")
    if "delivered" not in found:
        raise UserError(f"order {number} is {found['status']}; it can be returned once it is delivered")
    if not reason.strip():
        raise UserError("a return needs a reason")
    found["returned"] = shorten(reason, 200)
    beside = pathlib.Path(f"{path}.new")
    beside.write_text(json.dumps(orders, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return f"The return of order {number} ({found['item']}) is registered; a label is sent by e-mail."


def _read(path: str) -> dict:
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the orders cannot be read: {path}: {error}") from error


def _order(orders: dict, order: str) -> tuple[dict, str]:
    """(the order, its number as the file has it)."""
    number = order.strip().lstrip("#").upper()
    if number not in orders:
        raise UserError(f"there is no order {shorten(order, 40)}; ask for the number on the receipt")
    return orders[number], number
