"""Peak memory of one training batch for retrieval: a query with 8 documents, all activations kept or one document at a time.

python benchmarks/m2_bert_retrieval_memory.py [tokens of a document]
"""

import sys

from record import peak_memory_mib, record


CODE = """
import tempfile, torch
from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.modeling.m2_bert.modeling_m2_bert import M2BertForSentenceEmbedding
from hf_elm.trainers.retrieval_config import RetrievalConfig
from hf_elm.trainers.retrieval_trainer import RetrievalTrainer
from hf_elm.trainers.tokenization import build_tokenizer
torch.set_num_threads(1)
torch.manual_seed(0)
tokenizer = build_tokenizer("byte", encoder=True)
sizes = {{"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": {length}}}
model = M2BertForSentenceEmbedding(M2BertConfig.preset("tiny", **sizes))
texts = [str(i) + "x" * {length} for i in range(8)]
rows = [{{"query": "where?", "positives": texts[:1], "negatives": texts[1:]}}]
options = {{"max_length": {length}, "negatives_per_query": 7, "documents_per_forward": {pieces}, "use_cpu": True}}
args = RetrievalConfig(output_dir=tempfile.mkdtemp(), **options)
trainer = RetrievalTrainer(model, args, rows, processing_class=tokenizer)
batch = trainer.data_collator([trainer.train_dataset[0]])
mark()
trainer.compute_loss(model.train(), batch).backward()
mark()
"""


def main():
    length = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    for pieces in (None, 1):
        record(
            "m2_bert_retrieval_memory", impl="all at once" if pieces is None else "one at a time", metric="peak_memory",
            unit="MiB", value=round(peak_memory_mib(CODE.format(length=length, pieces=pieces))),
            shape={"queries": 1, "documents": 8, "seq": length, "hidden": 64, "layers": 2}, n=1,
        )  # fmt: skip


if __name__ == "__main__":
    main()
