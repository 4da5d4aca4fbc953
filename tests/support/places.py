"""Where the tests find what lies beside them."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the checkout
