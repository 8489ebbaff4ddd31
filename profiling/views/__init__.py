"""Views: from what a script wrote to the header and rows of a table, in words.

`VIEWS` maps (script, view) to a function of the result's data. `tables.py` puts them into pages.
"""

from views import kernels, lab, losses, performance, plans, precision, scaling, steps, whole_steps

VIEWS = {**steps.VIEWS, **plans.VIEWS, **kernels.VIEWS, **precision.VIEWS, **losses.VIEWS, **lab.VIEWS,
         **scaling.VIEWS, **whole_steps.VIEWS, **performance.VIEWS}
