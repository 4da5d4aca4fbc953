"""Pages for people: one HTML file each, which needs nothing else. The report of a study and `gptjax watch` share them.

style     colours and layout, light and dark; the file around a body
palette   colours that all readers tell apart
numbers   how numbers are printed
blocks    sections, tables and lists before they are HTML or Markdown
page      blocks as HTML
"""
