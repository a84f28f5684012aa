"""Measurements as something to read: a page with plots, a table for spreadsheets, Markdown for a pull request.

kit/          what all pages share: markup.py (the one way in which text becomes HTML), tables, plots, style.css
sweep/        the pages of a sweep. pages.py says what is written and in what order: read this first
              verdict.py applies the rule of what to deploy, and trust.py says how far that can be believed
              panels.py groups a report by setting; page.py lists the parts of the page, plots/__init__.py its plots
compare/, evaluate/, show/, tune/: the pages of the verbs `compare`, `eval`, `show` and `tune`
"""
