"""Adapters: small parts added to a model whose own parameters stay frozen (model.adapter).

    targets        the matrices of a layer by the names that `on` takes, and their sizes, counted without JAX
    adapter        what every kind states, and what one that sits on linear maps has in common
    lora           low-rank updates: LoRA, rank-stabilised LoRA, DoRA
    adalora        low-rank updates that give up ranks while they are trained
    ia3            scaled outputs
    bottleneck     small MLPs behind attention and MLP
    prefix         keys and values before every sequence: prefix tuning, prompt tuning
    ahead          what attention does with these
    merging        an adapter's part put into the model's own matrices, and taken out again

Which kinds there are, and how to add one: config/catalogue.py, ADAPTERS.
"""
