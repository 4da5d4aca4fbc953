"""`gptjax data`: what a run reads, and whether it is whole."""
