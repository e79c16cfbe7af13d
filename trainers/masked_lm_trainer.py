"""`MaskedLMTrainer`: pretrains an M2-BERT encoder by predicting masked tokens."""

import os
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..modeling.m2_bert.configuration_m2_bert import M2BertConfig
from ..modeling.m2_bert.modeling_m2_bert import M2BertForMaskedLM
from .encoder_rows import encoder_rows
from .masked_lm_config import MaskedLMConfig
from .packing import PackingCollator
from .parameter_rates import give_own_settings
from .peft_adapters import base_model
from .token_masks import IGNORED, MaskRule, mask_seed
from .token_trainer import TokenTrainer
from .training_rows import saved_tokenizer, training_and_evaluation_rows


NOT_DECAYED = ("bias", "positions")  # how the names of parameters begin that are of more than one axis but no matrices


class MaskedLMTrainer(TokenTrainer):
    """Minimises the cross-entropy of `M2BertForMaskedLM` at masked tokens, nats per masked token.

    What is masked depends on (``args.seed``, optimizer step, tokens of the row) alone: see `MaskRule`. A resumed run masks as the
    uninterrupted one, 8x1, 4x2 (gradient accumulation) and two processes mask alike, and a row that comes again is masked anew.
    All evaluations, of all runs, mask a row alike. Rows that carry ``labels`` are taken as they are.

    Logged: ``loss``; ``tokens_per_second`` (masked tokens), ``input_tokens_per_second`` (all of them). In evaluation
    ``eval_loss``, ``eval_masked_tokens``, ``eval_masked_accuracy`` (share of them whose likeliest prediction is right) and
    ``eval_unigram_entropy``: entropy of the frequencies of the masked tokens themselves, nats. No prediction that ignores the
    context reaches a lower loss on them, not even one that knows these frequencies.

    Args:
        model: an `M2BertForMaskedLM`, or a path or Hub id of one.
        args: `MaskedLMConfig`.
        train_dataset, eval_dataset: rows with a text column, which are tokenised (one document, or one piece of it, per row:
            see `encoder_rows`), or with ``input_ids`` and optionally ``attention_mask``, ``position_ids``, ``labels``. ``eval_dataset``
            may be a dict of datasets.
        processing_class: the tokenizer; None = the one saved with ``model`` when that is a path or id.
        data_collator: None = padding on the right to the longest row.
        kwargs: ``peft_config`` (PEFT adapters instead of the weights), ``callbacks``, ``optimizers``, ``compute_metrics``, … as in `transformers.Trainer`.

    Raises:
        TypeError: another kind of model.
        ValueError: a dataset of packed rows; no tokenizer, or none for encoders, where something is to be masked.
    """

    shifts_labels = False
    _has_own_rates = False  # whether the optimizer has groups for the filters

    def __init__(
        self,
        model,
        args: MaskedLMConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        data_collator=None,
        **kwargs,
    ):
        args = MaskedLMConfig() if args is None else args
        if processing_class is None and isinstance(model, str):
            processing_class = saved_tokenizer(model)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            _refuse_packed_rows(dataset, name)
        make_rows = partial(encoder_rows, variable_length_share=args.variable_length_share)
        train_dataset, eval_dataset = training_and_evaluation_rows(
            train_dataset, eval_dataset, processing_class, args, make_rows, encoder_rows
        )
        model = masked_model(model)
        self.masked_model = base_model(model)  # without PEFT's wrapper, and later without Accelerate's
        self._labels: Tensor | None = None  # of the batch at hand
        self.target_counts: Tensor | None = None  # of an evaluation, (vocab,)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or UnmaskedCollator(getattr(processing_class, "pad_token_id", None) or 0),
            **kwargs,
        )

    # ---------------------------------------------------------------------------------------------------- masks

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        seed = mask_seed(self.args.seed, self.state.global_step)
        batches = map(partial(self.masked, seed=seed, probability=self.args.mlm_probability), epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self.masked(inputs, mask_seed("evaluation"), self.args.eval_mlm_probability)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    @cached_property
    def mask_rule(self) -> MaskRule:
        """The rule of the tokenizer and of ``args``."""
        if self.processing_class is None:
            raise ValueError(
                "rows without labels are masked here, which needs the tokenizer: pass it as processing_class=, or rows with labels."
            )
        shares = {"mask_share": self.args.mask_share, "random_share": self.args.random_share}
        return MaskRule.of(self.processing_class, self.args.device, **shares)

    def masked(self, batch: dict[str, Tensor], seed: int, probability: float) -> dict[str, Tensor]:
        """``batch`` with masked ``input_ids`` and with ``labels``, unless it has labels.

        A row of nothing but padding keeps its first token visible to the model, which refuses empty rows, and predicts nothing.

        Raises:
            ValueError: there is no tokenizer that says what the mask token is.
        """
        mask = batch.get("attention_mask")
        if batch.get("labels") is None:
            rule = replace(self.mask_rule, probability=probability)
            input_ids, labels = rule(batch["input_ids"], mask, seed)
            batch = {**batch, "input_ids": input_ids, "labels": labels}
        if mask is not None:
            first = torch.arange(mask.shape[1], device=mask.device) == 0
            batch = {**batch, "attention_mask": torch.where(first & ~mask.bool().any(1, keepdim=True), 1, mask)}
        return batch

    # --------------------------------------------------------------------------------------------- TokenTrainer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._labels = inputs["labels"]
        if model.training:
            mask = inputs.get("attention_mask")
            self._input_tokens = self._labels.new_tensor(self._labels.numel()) if mask is None else mask.sum()
        else:
            self._count_targets(self._labels)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def output_metrics(self, outputs, num_items):
        if self.model.training:
            return {"input_tokens": self._input_tokens}
        hits = (outputs.logits.argmax(-1) == self._labels).sum()
        return {"masked_accuracy": hits / num_items}

    def _window_metrics(self):
        steps, tokens_before = self.train_window.steps, self._tokens_before_window
        metrics = super()._window_metrics()
        targets = max(self._tokens_before_window - tokens_before, 1)
        per_target = metrics.pop("input_tokens") * steps / targets
        metrics["input_tokens_per_second"] = metrics["tokens_per_second"] * per_target
        return metrics

    def _count_targets(self, labels):
        counts = torch.bincount(labels[labels != IGNORED], minlength=self.masked_model.config.vocab_size)
        self.target_counts = counts if self.target_counts is None else self.target_counts + counts

    def evaluation_loop(self, *args, **kwargs):
        self.target_counts = None
        return super().evaluation_loop(*args, **kwargs)

    def evaluation_metrics(self):
        metrics = super().evaluation_metrics()
        counts = self.target_counts
        if counts is None:  # a rank without a batch
            counts = torch.zeros(self.masked_model.config.vocab_size, dtype=torch.long, device=self.args.device)
        counts = self.accelerator.reduce(counts, "sum")
        return metrics | {"unigram_entropy": unigram_entropy(counts), "masked_tokens": int(counts.sum())}

    # ------------------------------------------------------------------------------------------------ optimizer

    def get_decay_parameter_names(self, model):
        """Matrices that are neither embeddings nor positional features; everything with ``decay_all_parameters``."""
        named = list(model.named_parameters())
        if self.args.decay_all_parameters:
            return [name for name, _ in named]
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        embeddings = {id(p) for table in tables for p in table.parameters()}
        return [
            name
            for name, p in named
            if p.dim() >= 2 and id(p) not in embeddings and not name.rsplit(".", 1)[-1].startswith(NOT_DECAYED)
        ]

    def create_optimizer(self, model=None):
        """As transformers', with parameter groups of their own for the filters where they have their own rates."""
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(model)
        names = ("filter_learning_rate", "filter_weight_decay", "position_learning_rate")
        rates = {name: getattr(self.args, name) for name in names if getattr(self.args, name) is not None}
        if not rates or self._has_own_rates:
            return optimizer
        if not made_here:
            raise ValueError(
                f"{next(iter(rates))} needs an optimizer made by the trainer; leave optimizers= (and DeepSpeed's optimizer "
                "section) out, or give the filters their rates there."
            )
        # by name, because the code may be that of the package or of a Hub folder
        filters = [module for module in self.masked_model.modules() if type(module).__name__ == "ImplicitFilter"]
        positions = [module.positions for module in filters]
        networks = [p for module in filters for p in module.parameters() if p is not module.positions]
        for name, (parameters, setting) in {
            "filter_learning_rate": (networks, "lr"),
            "filter_weight_decay": (networks, "weight_decay"),
            "position_learning_rate": (positions, "lr"),
        }.items():
            if name in rates:
                give_own_settings(optimizer, parameters, name, **{setting: rates[name]})
        self._has_own_rates = True
        return optimizer


class UnmaskedCollator(PackingCollator):
    """As `PackingCollator`, padding on the right; rows without labels get none."""

    def __call__(self, rows):
        batch = super().__call__(rows)
        if rows[0].get("labels") is None:
            del batch["labels"]
        return batch


def unigram_entropy(counts: Tensor) -> float:
    """-sum p log p of the frequencies p of ``counts`` ``(vocab,)``, nats; 0 where nothing was counted."""
    counts = counts.double().cpu()
    p = counts / counts.sum().clamp(min=1)
    return -torch.special.xlogy(p, p).sum().item()


def masked_model(model) -> M2BertForMaskedLM:
    """``model`` itself, or the one at a path or Hub id.

    Raises:
        TypeError: not a masked language model of this family.
    """
    if isinstance(model, (str, os.PathLike)):
        return M2BertForMaskedLM.from_pretrained(model)
    family = getattr(getattr(model, "config", None), "model_type", None)
    if (
        not isinstance(base_model(model), PreTrainedModel)
        or family != M2BertConfig.model_type
        or not hasattr(model, "lm_head")
    ):
        raise TypeError(f"model must be an M2BertForMaskedLM, or a path or Hub id of one, got {type(model).__name__}.")
    return model


def _refuse_packed_rows(dataset, name):
    for key, rows in dataset.items() if isinstance(dataset, dict) else [(None, dataset)]:
        columns = getattr(rows, "column_names", None) or (rows[0].keys() if isinstance(rows, list) and rows else ())
        if "segment_ids" in columns:
            place = name if key is None else f'{name}["{key}"]'
            raise ValueError(
                f"{place} holds packed rows (segment_ids): the long convolutions would mix the texts of a row. Give rows of one "
                "text each, or the texts themselves."
            )
