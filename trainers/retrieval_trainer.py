"""`RetrievalTrainer`: fine-tunes an embedding model so that queries find their documents."""

import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ..modeling.m2_bert.modeling_m2_bert import M2BertForSentenceEmbedding
from .recorded_trainer import RecordedTrainer
from .retrieval_batches import RetrievalCollator
from .retrieval_config import RetrievalConfig
from .retrieval_losses import (
    NEGATIVE,
    POSITIVE,
    cosine_matrices,
    info_nce_sum,
    orthogonal_projection_sums,
    pair_counts,
)
from .retrieval_pairs import RetrievalPairs, pairs_of_rows
from .training_rows import saved_tokenizer


class RetrievalTrainer(RecordedTrainer):
    """Minimises the orthogonal projection loss (or InfoNCE) of the cosines of queries and documents; see `retrieval_losses`.

    The loss is a sum over pairs divided by the number of positive (negative) pairs of the whole optimizer step, so that 8x1, 4x2
    (gradient accumulation) and two processes are the same step; InfoNCE with ``in_batch_negatives`` is the exception.

    Logged, in evaluation with the prefix ``eval_``: ``positive_cosine`` and ``negative_cosine`` (means over pairs), for the
    orthogonal projection loss its two terms ``positive_loss`` and ``negative_loss``; ``tokens_per_second`` and
    ``num_input_tokens_seen`` count the tokens of queries and documents without padding.

    Args:
        model: an `M2BertForSentenceEmbedding`, any model whose output has ``sentence_embedding``, or a path or Hub id of the former.
        args: `RetrievalConfig`.
        train_dataset, eval_dataset: `RetrievalPairs`, or rows that `pairs_of_rows` reads. ``eval_dataset`` may be a dict of them.
        processing_class: the tokenizer; None = the one saved with ``model`` when that is a path or id.
        data_collator: None = `RetrievalCollator`.
        kwargs: ``peft_config`` (PEFT adapters instead of the weights), ``callbacks``, ``optimizers``, … as in `transformers.Trainer`.

    Raises:
        ValueError: no tokenizer, a length beyond the model's positions, a Matryoshka size beyond its embedding.
    """

    def __init__(
        self,
        model,
        args: RetrievalConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        data_collator=None,
        **kwargs,
    ):
        args = RetrievalConfig() if args is None else args
        if isinstance(model, (str, os.PathLike)):
            processing_class = processing_class or saved_tokenizer(str(model))
            model = M2BertForSentenceEmbedding.from_pretrained(model)
        _check_sizes(model.config, args)
        if data_collator is None:
            if processing_class is None:
                raise ValueError("queries and documents are texts: pass the tokenizer as processing_class=.")
            data_collator = RetrievalCollator(
                processing_class,
                args.max_length,
                args.max_query_length,
                args.query_prompt,
                args.document_prompt,
                args.in_batch_negatives,
            )
        super().__init__(
            model,
            args,
            train_dataset=_rows(train_dataset, args, "train_dataset"),
            eval_dataset=_evaluation_rows(eval_dataset, args),
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )

    # ----------------------------------------------------------------------------------------------------- loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """Positive and negative pairs of an optimizer step ``(2,)``, over ranks unless ``average_tokens_across_devices`` is off."""
        counts = torch.stack([pair_counts(batch["labels"]) for batch in batch_samples]).sum(0).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(counts.unsqueeze(0)).sum(0)
        return counts.clamp(min=1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss on the pairs of ``inputs``; its metrics go to the window of the mode (training or evaluation)."""
        labels, queries = inputs["labels"], inputs["queries"]
        items = pair_counts(labels).clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        cosines = cosine_matrices(
            self._embed(model, queries), self._embed_documents(model, inputs["documents"]), self.args.matryoshka_dims
        )
        sums = self._sums(cosines, labels)
        loss = sum(total / items[side] for total, side in sums["loss"])
        scale = self._rank_scale()
        tokens = queries["attention_mask"].sum() + inputs["documents"]["attention_mask"].sum()
        if model.training:
            metrics = {name: total / items[side] * scale for name, (total, side) in sums["metrics"].items()}
            self.train_window.add(metrics, tokens, finished_step=self.accelerator.sync_gradients)
            self._watch({"loss": loss * scale})
        else:
            totals = {f"loss_{side}": total for total, side in sums["loss"]}
            totals |= {name: total for name, (total, _) in sums["metrics"].items()}
            counts = dict(zip(("pairs_0", "pairs_1"), pair_counts(labels), strict=True))
            self.eval_window.add(totals | counts, tokens)
        return (loss * scale, {"loss": loss}) if return_outputs else loss * scale

    def _sums(self, cosines: list[Tensor], labels: Tensor):
        """``loss``: (sum, 0 = to divide by the positive pairs, 1 = by the negative ones); ``metrics``: name -> the same."""
        args, cuts = self.args, len(cosines)
        full = cosines[0].detach()
        metrics = {
            "positive_cosine": (full[labels == POSITIVE].sum(), 0),
            "negative_cosine": (full[labels == NEGATIVE].sum(), 1),
        }
        if args.retrieval_loss == "info_nce":
            total = sum(info_nce_sum(each, labels, args.similarity_scale) for each in cosines) / cuts
            return {"loss": [(total, 0)], "metrics": metrics}
        sides = [orthogonal_projection_sums(each, labels, args.absolute_cosine) for each in cosines]
        positive, negative = (sum(side) / cuts for side in zip(*sides, strict=True))
        metrics |= {"positive_loss": (positive, 0), "negative_loss": (negative, 1)}
        return {"loss": [(positive, 0), (negative, 1)], "metrics": metrics}

    def _embed(self, model, texts: Mapping[str, Tensor]) -> Tensor:
        options = {"normalize": False}
        if self.args.matryoshka_dims:
            options["truncate_dim"] = max(self.args.matryoshka_dims)
        return model(**texts, **options).sentence_embedding

    def _embed_documents(self, model, texts: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of the documents; in pieces whose activations are made again in the backward pass, if so configured."""
        count, size = len(texts["input_ids"]), self.args.documents_per_forward
        if size is None or (size >= count and not model.training):
            return self._embed(model, texts)
        # DDP prepares its reduction in the forward pass of the queries; its wrapper must not be entered again in the backward pass.
        encoder = model.module if isinstance(model, DistributedDataParallel) else model
        pieces = []
        for start in range(0, count, size):
            piece = _trimmed({name: tensor[start : start + size] for name, tensor in texts.items()})
            if torch.is_grad_enabled():
                pieces.append(checkpoint(self._embed, encoder, piece, use_reentrant=False))
            else:
                pieces.append(self._embed(encoder, piece))
        return torch.cat(pieces)

    # ------------------------------------------------------------------------------------------------ evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss alone; embeddings are compared over whole collections by ``hf-elm retrieve``."""
        inputs = self._without_repeated_rows(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(
                model, inputs, num_items_in_batch=self._get_num_items_in_batch([inputs], self.args.device)
            )
        return loss.detach(), None, None

    def evaluation_metrics(self):
        """Means over the positive (negative) pairs of the whole set."""
        sums = self.eval_window.sums(self.accelerator)
        pairs = [max(sums.pop(f"pairs_{side}", 0.0), 1.0) for side in (0, 1)]
        metrics = {"loss": sum(sums.pop(f"loss_{side}", 0.0) / pairs[side] for side in (0, 1))}
        return metrics | {name: total / pairs[name.startswith("negative")] for name, total in sums.items()}


def _check_sizes(config, args: RetrievalConfig):
    limit, hidden = getattr(config, "max_position_embeddings", None), getattr(config, "hidden_size", None)
    for name in ("max_length", "max_query_length"):
        length = getattr(args, name)
        if None not in (limit, length) and length > limit:
            raise ValueError(f"{name}={length} exceeds the model's {limit} positions; lower it.")
    dims = args.matryoshka_dims
    if dims and hidden is not None and max(dims) > hidden:
        raise ValueError(
            f"matryoshka_dims={dims} go beyond the model's hidden_size ({hidden}); leave the larger ones out."
        )


def _rows(dataset, args: RetrievalConfig, name: str):
    """``dataset`` with the negatives that ``args`` ask for."""
    if dataset is None:
        return None
    pairs = dataset if isinstance(dataset, RetrievalPairs) else pairs_of_rows(dataset, name)
    if args.retrieval_loss == "info_nce":
        pairs = pairs.select(row for row in range(len(pairs)) if pairs.positives[row])
    if not len(pairs):
        raise ValueError(f"{name} has no query with a positive; it needs at least one.")
    return replace(pairs, negatives_per_query=args.negatives_per_query, seed=args.seed)


def _evaluation_rows(dataset, args):
    if isinstance(dataset, dict):
        return {name: _rows(rows, args, f'eval_dataset["{name}"]') for name, rows in dataset.items()}
    return _rows(dataset, args, "eval_dataset")


def _trimmed(texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the columns in which every text has padding."""
    kept = texts["attention_mask"].any(dim=0)
    return {name: tensor[:, kept] for name, tensor in texts.items()}
