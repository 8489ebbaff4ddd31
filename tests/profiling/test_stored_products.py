"""Products with weights as they lie in files against those with arrays: equal bits, and a row for each kind."""
from profiling_scripts import script

from cllm import _kernels as kernels


def test_both_products_are_timed_on_equal_numbers():
    stored_products = script("stored_products")
    rows = []
    for kind in stored_products.KINDS:
        rows.append(row := stored_products.measured(kernels, kind, 3, (64, 40), 2))
        nbytes, count = kernels.STORED_KINDS[kind]
        assert row["nbytes"] == 40 * 64 // count * nbytes
        for which in ("forward", "backward"):
            assert row[which]["ratio"]["value"] > 0 and len(row[which]["stored"]["rounds"]) == 2
    header, told = script("views").VIEWS["stored_products", ""]({"rows": rows})
    assert header[2:] == ("x W, 3 rows", "dy Wᵀ, 3 rows") and [line[0] for line in told] == list(stored_products.KINDS)
    assert told[1][1:] == ("64 × 40", *(f"{rows[1][which]['ratio']['value']:.2f}" for which in ("forward", "backward")))
