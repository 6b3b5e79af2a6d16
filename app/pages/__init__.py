"""What people see: the files and templates of the pages, and the addresses under which browsers find them.

Knows nothing of HTTP: `api.pages` and its neighbours serve it. `static/` is sent as it lies there (no build step; only
the widget's modules are joined to one file, without their comments), `static/vendor/` is others' work, unchanged
(THIRD_PARTY.md there), `templates/` become HTML.
"""
