"""The report as one page that needs no network: text, SVG, a style sheet and a script, all inside.

`page` puts it together, from `tables`, `scatter` (memory against time), `timelines`, `grids` (plans), `courses` (a
sweep); `svg` has what the pictures are made of. Every text that a user may have named goes through `svg.escape`.
"""
