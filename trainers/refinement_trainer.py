"""`RefinementTrainer`: trains a language model together with the energy that refines its predictions."""

import os

from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling.nano_ebm.configuration_nano_ebm import NanoEBMConfig
from ..modeling.nano_ebm.modeling_nano_ebm import NanoEBMForRefinement
from ..modeling.nano_ebm.refinement_loss import next_token_targets
from .packing import PackingCollator
from .peft_adapters import base_model
from .refinement_config import RefinementConfig
from .residual_energy_trainer import negatives_seed, seeded_generator
from .token_trainer import TokenTrainer
from .training_rows import saved_tokenizer, training_and_evaluation_rows


class RefinementTrainer(TokenTrainer):
    """Minimises the loss of `NanoEBMForRefinement`, nats per target token:

        (1 - aux_ce_weight) * mean over steps of CE(z_k) + aux_ce_weight * CE(z_0) + contrastive terms

    Noise and negatives are drawn with a generator seeded by (``args.seed``, rank, optimizer step, batch within the step): a
    resumed run repeats what the uninterrupted one draws. Stored chains are part of the checkpoint.

    Logged, in evaluation with the prefix ``eval_``: ``nll_s1`` and ``nll_s2`` (before and after thinking), ``delta_nll`` (their
    difference, negative where thinking helps), ``alpha_k`` (step size of step k), ``contrastive_loss`` and ``info_nce_loss``
    where they are on; in evaluation also ``energy_gap`` (mean fall of the free energy over all steps, nats).

    Args:
        model: a `NanoEBMForRefinement`, any transformers causal LM (refinement is attached to it), or a path or Hub id of either.
        args: `RefinementConfig`.
        train_dataset, eval_dataset: rows with a text column, which are tokenised and packed, or with ``input_ids`` and
            ``labels``, optionally ``segment_ids``, ``attention_mask``, ``position_ids``. ``eval_dataset`` may be a dict of them.
        processing_class: the tokenizer; None = the one saved with ``model`` when that is a path or id.
        data_collator: None = padding to the longest row.
        kwargs: ``peft_config``: PEFT adapters are trained in the place of the language model's weights, the refinement in full;
            ``callbacks``, ``optimizers``, ``compute_metrics``, … as in `transformers.Trainer`.
    """

    watched = ("nll_s1", "nll_s2", "contrastive_loss", "info_nce_loss")

    def __init__(
        self,
        model,
        args: RefinementConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        data_collator=None,
        **kwargs,
    ):
        args = RefinementConfig() if args is None else args
        if processing_class is None and isinstance(model, str):
            processing_class = saved_tokenizer(model)
        train_dataset, eval_dataset = training_and_evaluation_rows(train_dataset, eval_dataset, processing_class, args)
        model = refinement_model(model)
        self.refined_model = base_model(model)  # without PEFT's wrapper, and later without Accelerate's
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or PackingCollator(getattr(processing_class, "pad_token_id", None) or 0),
            **kwargs,
        )

    def modules_trained_whole(self, model):
        """The refinement: energy terms, step sizes that learn, stored chains."""
        learns = {"energy": True, "step_sizes": model.config.think_lr_learnable, "chains": True}
        return [name for name, learnt in learns.items() if learnt and getattr(model, name) is not None]

    # --------------------------------------------------------------------------------------------- TokenTrainer

    def counted_labels(self, inputs):
        """Labels with -100 at padding, at the first token of a row and of each document, as the model counts."""
        targets = next_token_targets(inputs["labels"], inputs.get("attention_mask"), inputs.get("segment_ids"))
        return pad(targets[:, :-1], (1, 0), value=-100)

    def forward_arguments(self, training, wants_logits):
        step = self.state.global_step if training else -1  # the same negatives in every evaluation
        seed = negatives_seed(self.args.seed, self._data_rank(), step, self.micro_step)
        arguments = {"generator": seeded_generator(seed, self.args.device), "output_energies": not training}
        if training and step < self.args.system_one_steps:
            arguments["use_thinking"] = False
        return arguments

    def output_metrics(self, outputs, num_items):
        refined = outputs.nll_s1 if outputs.nll_s2 is None else outputs.nll_s2
        metrics = {"nll_s1": outputs.nll_s1, "nll_s2": refined, "delta_nll": refined - outputs.nll_s1}
        for name in ("contrastive_loss", "info_nce_loss"):
            if (value := getattr(outputs, name)) is not None:
                metrics[name] = value
        share = outputs.target_mask.sum() / num_items
        for index, alpha in enumerate(self.refined_model.step_sizes().detach(), start=1):
            metrics[f"alpha_{index}"] = alpha * share
        if outputs.energies is not None:
            fall = outputs.energies[0] - outputs.energies[-1]
            metrics["energy_gap"] = (fall * outputs.target_mask).sum() / num_items
        return metrics

    # ------------------------------------------------------------------------------------------------ optimizer

    def get_decay_parameter_names(self, model):
        """Matrices that are no embeddings; everything with ``decay_all_parameters``."""
        named = list(model.named_parameters())
        if self.args.decay_all_parameters:
            return [name for name, _ in named]
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        embeddings = {id(p) for table in tables for p in table.parameters()}
        return [name for name, p in named if p.dim() >= 2 and id(p) not in embeddings]


def refinement_model(model) -> NanoEBMForRefinement:
    """``model`` itself, or refinement attached to a causal LM; paths and Hub ids are loaded.

    Raises:
        TypeError: neither of these.
    """
    if isinstance(model, (str, os.PathLike)):
        config, _ = PreTrainedConfig.get_config_dict(model)
        if config.get("model_type") == NanoEBMConfig.model_type:
            return NanoEBMForRefinement.from_pretrained(model)
        return NanoEBMForRefinement.from_causal_lm(str(model))
    if getattr(getattr(model, "config", None), "model_type", None) == NanoEBMConfig.model_type:
        return model  # of the package or of a Hub folder's own code, also inside PEFT's wrapper
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a NanoEBMForRefinement, a transformers causal LM, or a path or Hub id, got {type(model).__name__}."
        )
    return NanoEBMForRefinement.from_causal_lm(model)
