"""`python -m experiments.report`: what the runs of a suite say, with intervals, as a page, Markdown, tables and figures (docs/report.md).

options.py reads the command line; content.py decides what the report says, as sections of panels (panels.py) and tables (tables.py);
charts.py and figures.py draw panels, for the page and for papers; page.py writes index.html, document.py report.md.
"""
