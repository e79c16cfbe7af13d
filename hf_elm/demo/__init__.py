"""The page behind ``hf-elm demo`` (Gradio, ``hf_elm[demo]``): what it shows is computed by plain functions, which need no Gradio.

    candidate_steps     MonArc: a continuation, token by token, with the candidates of each
    token_scores        MonArc: log p, energy and log Z of every token of a text
    thinking            nanoEBM: a prediction before and after thinking, and a continuation with thinking
    document_search     M2-BERT: documents by similarity to a query, masks filled

``*_tabs`` lay these out for a family, `page` puts the tabs together and `server` serves them. Energies: lower is likelier; nats.
"""
