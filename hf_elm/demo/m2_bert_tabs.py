"""The tabs of an M2-BERT model: search among documents, and masks filled where it has a masked-LM head."""

from ..embedding_models import load_embedder
from ..families import class_of_checkpoint
from ..saved_models import load_model, load_tokenizer, pick_device
from .document_search import MAX_MASKS, embed_documents, fill_masks, rank_documents
from .lazy_gradio import gr
from .m2_bert_html import mask_tables, ranking_table
from .page import Tab, html_view, with_clear_errors
from .request_limits import MAX_DOCUMENTS, MAX_PROMPT
from .shared_model import SharedModel
from .step_view import KEPT_SECONDS


DESCRIPTION = "M2-BERT: a bidirectional encoder whose layers mix tokens by long convolutions."
PLAIN_POOLING = {"pooling": "mean", "pool_with_dense": False}  # of a model that was not trained to embed
DOCUMENTS = """Return a list of the names of the files in a directory.
Split a string at every occurrence of a separator.
Open a network connection to a host and port.
Compute the square root of a floating point number.
Compress data with the zlib format.
Wait until the thread has ended.
Parse a date written as year, month and day.
Send an e-mail message through a server."""
QUERY = "list the files of a folder"


def load_tabs(checkpoint: str, device: str | None, dtype: str | None) -> tuple[str, list[Tab]]:
    """The description and the tabs of the model at ``checkpoint``; which they are follows from the class that was saved."""
    kind = class_of_checkpoint(checkpoint).split(":")[1]
    if kind == "M2BertForSentenceEmbedding":
        shared, embedding = SharedModel(*load_embedder(checkpoint, device, dtype)), {}
    else:
        model = load_model(checkpoint, dtype, as_saved=True).to(pick_device(device)).eval()
        shared, embedding = SharedModel(model, load_tokenizer(checkpoint, "checkpoint")), PLAIN_POOLING
    tabs = [Tab("Embed and search", lambda: search_tab(shared, embedding))]
    if kind == "M2BertForMaskedLM":
        tabs.insert(0, Tab("Fill masks", lambda: mask_tab(shared)))
    return DESCRIPTION, tabs


def search_tab(shared: SharedModel, embedding: dict) -> None:
    """Documents and a query on the left; the ranking on the right. Vectors are kept until the documents change."""
    kept = gr.State(None, time_to_live=KEPT_SECONDS)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            label = f"Documents, one per line (at most {MAX_DOCUMENTS})"
            source = gr.Textbox(DOCUMENTS, label=label, lines=9, max_lines=20)
            query = gr.Textbox(QUERY, label="Query", lines=1, max_length=MAX_PROMPT)
            count = gr.Slider(1, 50, 5, step=1, label="Results")
            start = gr.Button("Search", variant="primary")
            if embedding:
                gr.Markdown("This model was not trained to embed: a text's vector is the mean of its tokens' states.")
        with gr.Column(scale=4, min_width=380):
            ranking = html_view("ranking")

    @with_clear_errors
    def search(documents, text, words, results):
        if documents is None or documents.source != text:
            documents = embed_documents(shared, text, **embedding)
        found = rank_documents(shared, documents, words, results, **embedding)
        return documents, ranking_table(found, documents)

    for event in (start.click, query.submit):
        event(search, [kept, source, query, count], [kept, ranking])


def mask_tab(shared: SharedModel) -> None:
    """A text with masks; the likeliest tokens in their places."""
    mask = shared.tokenizer.mask_token
    label = f"Text; write {mask} where the model is to fill in (1 to {MAX_MASKS} times)"
    text = gr.Textbox(
        f"def __init__(self, {mask}):", label=label, lines=3, max_length=MAX_PROMPT, elem_classes="elm-mono"
    )
    start = gr.Button("Fill", variant="primary")
    found = html_view("masks")

    @with_clear_errors
    def fill(words):
        return mask_tables(fill_masks(shared, words))

    start.click(fill, [text], [found])
