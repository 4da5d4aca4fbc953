"""What people do with a model: recipes, which are prompt templates in files, and what they need beside a model.

recipe      a recipe's file, and how it is applied to a conversation
templates   texts with {placeholders}
answering   a recipe run on a model: tools called, fields checked, labels chosen, sources found and cited
replies     what a model says to a recipe, and what is asked of a model
local       a run in this process that is asked
remote      a server that is asked
client      requests to such a server, and the events of its streams
tools       functions that an assistant may call
orders      tools over a shop's file of orders
equations   arithmetic in an answer, checked
citations   the sources of an answer, checked
fields      JSON in an answer, checked against a schema
infilling   a gap in a text as a prompt
documents   files cut into passages
retrieval   an index of passages, by words and by vectors
vectors     vectors of texts: of a run, of a server, or of a sentence encoder
"""
