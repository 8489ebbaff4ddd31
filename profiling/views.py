"""Views: from what a script wrote to the header and rows of a table, in words.

`VIEWS` maps (script, view) to a function of the result's data. `tables.py` puts them into pages.
"""

import kernel_views
import planner_views
import precision_views
import step_views

VIEWS = {**step_views.VIEWS, **planner_views.VIEWS, **kernel_views.VIEWS, **precision_views.VIEWS}
