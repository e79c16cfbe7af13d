"""`ResidualEnergyTrainer`: trains the LM and the residual energy of a MonArc model."""

import hashlib

import torch
from torch import nn

from .energy_models import prepare_energy_model
from .packing import PackingCollator
from .peft_adapters import base_model
from .residual_energy_config import ResidualEnergyConfig
from .token_trainer import TokenTrainer
from .training_rows import saved_tokenizer, training_and_evaluation_rows


class ResidualEnergyTrainer(TokenTrainer):
    """Minimises ``lm_loss + energy_loss_weight * energy_loss`` of `MonArcForCausalLM`, nats per target token.

    Negatives are drawn with a generator seeded by (``args.seed``, rank, optimizer step, batch within the step): ranks and steps
    differ, a resumed run repeats exactly what the uninterrupted one draws, and evaluations share one set of negatives.

    Logged, in evaluation with the prefix ``eval_``: ``lm_loss``, ``energy_loss``, ``z_hat``, ``elm_nll_bound`` (see
    `MonArcOutput`), ``energy_data`` and ``energy_negatives`` (mean E of the data and of the negatives, nats).

    Args:
        model: a `MonArcForCausalLM`, any transformers causal LM (it is wrapped), or a path or Hub id of either.
        args: `ResidualEnergyConfig`.
        train_dataset, eval_dataset: rows with a text column, which are tokenised and packed, or with ``input_ids`` and
            optionally ``labels``, ``segment_ids``, ``attention_mask``, ``position_ids``, ``negatives (K, seq)``. ``eval_dataset``
            may be a dict of datasets.
        processing_class: the tokenizer; None = the one saved with ``model`` when that is a path or id.
        peft_config: trains PEFT adapters in the place of the LM's weights; the energy head is trained in full, unless
            ``modules_to_save`` says otherwise or ``target_modules`` reaches into it.
        data_collator: None = padding to the longest row.
        kwargs: ``callbacks``, ``optimizers``, ``compute_metrics``, … as in `transformers.Trainer`.
    """

    watched = ("lm_loss", "energy_loss")
    _energy_groups = False  # whether the optimizer has groups for the energy

    def __init__(
        self,
        model,
        args: ResidualEnergyConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        peft_config=None,
        data_collator=None,
        **kwargs,
    ):
        args = ResidualEnergyConfig() if args is None else args
        if processing_class is None and isinstance(model, str):
            processing_class = saved_tokenizer(model)
        train_dataset, eval_dataset = training_and_evaluation_rows(train_dataset, eval_dataset, processing_class, args)
        model = prepare_energy_model(model, args)
        self.energy_model = base_model(model)  # without PEFT's wrapper, and later without Accelerate's
        use_cache = vars(self.energy_model.config).get("use_cache")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            data_collator=data_collator or PackingCollator(getattr(processing_class, "pad_token_id", None) or 0),
            **kwargs,
        )
        # transformers writes args.use_cache = False to the config; saved, it would keep the model from generating
        self.energy_model.config.use_cache = use_cache
        if use_cache is None:
            del self.energy_model.config.use_cache

    def modules_trained_whole(self, model):
        if model.energy_adapter is not None:
            raise ValueError(
                f"peft_config together with config.energy_adapter_rank={model.config.energy_adapter_rank}: PEFT would train copies "
                "of the energy adapter that the LM's layers do not use. Set energy_adapter_rank=0, or train the two one after the "
                "other."
            )
        return ["energy_head"]

    # --------------------------------------------------------------------------------------------- TokenTrainer

    def counted_labels(self, inputs):
        """Labels with -100 at padding and, as the model counts, at the first token of a row and of each document."""
        labels, segments, mask = inputs["labels"], inputs.get("segment_ids"), inputs.get("attention_mask")
        if mask is None and segments is not None:
            mask = segments >= 0
        counted = torch.ones_like(labels, dtype=torch.bool)
        if mask is not None:
            counted = counted & mask.bool()
            counted[:, 1:] &= mask[:, :-1].bool()
        if segments is not None and self.energy_model.config.mask_segment_starts:
            counted[:, 1:] &= segments[:, 1:] == segments[:, :-1]
        return labels.masked_fill(~counted, -100)

    def forward_arguments(self, training, wants_logits):
        step = self.state.global_step if training else -1  # the same negatives in every evaluation
        seed = negatives_seed(self.args.seed, self._data_rank(), step, self.micro_step)
        arguments = {"generator": seeded_generator(seed, self.args.device), "output_logits": wants_logits}
        return arguments if training else arguments | {"negative_fraction": 1.0}

    def output_metrics(self, outputs, num_items):
        metrics = {name: outputs[name] for name in ("lm_loss", "energy_loss", "z_hat", "elm_nll_bound")}
        metrics["energy_data"] = (outputs.energies * outputs.target_mask).sum() / num_items
        negatives = (outputs.negative_energies.mean(1) * outputs.target_mask).sum() / num_items
        places = outputs.energies.shape[1] - 1
        fraction = self.energy_model.config.negative_fraction if self.model.training else 1.0
        scored = max(1, round(fraction * places)) / places  # an energy of 0 stands where no negative was scored
        metrics["energy_negatives"] = negatives / scored
        return metrics

    # ------------------------------------------------------------------------------------------------ optimizer

    def get_decay_parameter_names(self, model):
        """Matrices that are no embeddings; everything with ``decay_all_parameters``."""
        named = list(model.named_parameters())
        if self.args.decay_all_parameters:
            return [name for name, _ in named]
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        embeddings = {id(p) for table in tables for p in table.parameters()}
        dims = {
            name: len(getattr(p, "ds_shape", p.shape)) for name, p in named
        }  # ds_shape: before DeepSpeed's sharding
        return [name for name, p in named if dims[name] >= 2 and id(p) not in embeddings]

    def create_optimizer(self, model=None):
        """As transformers', with parameter groups of their own for the energy when it has its own learning rate."""
        rate, made_here = self.args.energy_learning_rate, self.optimizer is None
        optimizer = super().create_optimizer(model)
        if rate is None or self._energy_groups:
            return optimizer
        if not made_here:
            raise ValueError(
                f"energy_learning_rate={rate} needs an optimizer made by the trainer; leave optimizers= (and DeepSpeed's "
                "optimizer section) out, or give model.energy_parameters() their rate there and set energy_learning_rate=None."
            )
        self._split_energy_groups(optimizer, rate)
        self._energy_groups = True
        return optimizer

    def _split_energy_groups(self, optimizer, rate):
        energy = {id(p) for p in self.energy_model.energy_parameters()}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in energy]
            group["params"] = [p for p in group["params"] if id(p) not in energy]
            if own:
                energy.difference_update(map(id, own))
                optimizer.add_param_group({**group, "params": own, "lr": rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        if any(p.requires_grad and id(p) in energy for p in self.energy_model.energy_parameters()):
            raise ValueError(
                f"energy_learning_rate={rate}: the optimizer does not hold the energy's parameters one by one (FSDP with "
                "flattened parameters, or a layer-wise optimizer); set fsdp_version 2 or energy_learning_rate=None."
            )


def negatives_seed(seed: int, rank: int, step: int, micro_step: int) -> int:
    """A 63-bit seed; different for any two different arguments, but for chance."""
    digest = hashlib.sha256(f"{seed}/{rank}/{step}/{micro_step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_generator(seed: int, device: torch.device) -> torch.Generator | None:
    """A generator on ``device``; None on XLA, which has one generator per device: that one is seeded instead."""
    if device.type == "xla":
        import torch_xla.core.xla_model as xm

        xm.set_rng_state(seed)
        return None
    return torch.Generator(device).manual_seed(seed)
