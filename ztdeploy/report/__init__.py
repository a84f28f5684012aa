"""Measurements as something to read: a page with plots, a table for spreadsheets, Markdown for a pull request.

pages.py      what is written, and in what order; read this first
verdict.py    what to deploy, by written rules; trust.py: what limits how far that can be believed
panels.py     a report by setting: what the plots and tables are made of
page.py       the HTML page; its parts in parts/, its plots in plots/, its looks in style.css
markup.py     the one way in which text becomes HTML
"""
