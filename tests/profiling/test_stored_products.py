"""Products with weights as they lie in files against those with arrays: equal bits, and a row for each kind."""
from profiling_scripts import script

from cllm import _kernels as kernels


def test_both_products_are_timed_on_equal_numbers():
    stored_products = script("stored_products")
    for kind in stored_products.KINDS:
        row = stored_products.measured(kernels, kind, 3, (64, 40), 2)
        nbytes, count = kernels.STORED_KINDS[kind]
        assert row["nbytes"] == 40 * 64 // count * nbytes
        for which in ("forward", "backward"):
            assert row[which]["ratio"]["value"] > 0 and len(row[which]["stored"]["rounds"]) == 2
