"""The whole engine as one flat loop, made of the library's own pieces: read it from top to bottom.

What the full engine adds: micro-batches, gradient noise, validation, checkpoints, records, resume.
"""

import torch

from bsharp.algorithm import ScoreInputs, leave_one_out, parse_objective, reduction_weights, reinforce, weighted_sum
from bsharp.config import TrainConfig
from bsharp.experiment import build_workbench
from bsharp.generation import SamplingParams, generator_for
from bsharp.models import clone_model, forward_responses, response_logprobs
from bsharp.rollouts import build_batch, collect_rollouts
from bsharp.training.problems import ProblemStream


def main(objective_spec: str = "tilted(alpha=1,beta_inv=100)", steps: int = 5) -> list[float]:
    config = TrainConfig(steps=steps)
    bench = build_workbench(config.model, config.tasks)  # the frozen base, the tasks, the graders
    policy = clone_model(bench.base)
    policy.model.requires_grad_(True)
    generator = generator_for(policy)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    problems = ProblemStream(bench.tasks, config)
    _, objective = parse_objective(objective_spec)
    params = SamplingParams(max_new_tokens=48)
    rewards = []

    for step in range(1, steps + 1):
        # problem → prompt → completion → grade → tensors
        groups = collect_rollouts(
            generator, policy, bench.tasks, bench.rewards, problems.problems(step), 8, params, run_seed=0, step=step
        )
        batch = build_batch(groups, policy.pad_token_id)

        # the score: the only line that differs between learning, sharpening and everything between
        base_logprobs = response_logprobs(bench.base, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
        scores = objective.score(ScoreInputs(batch.rewards, base_logprobs, batch.behaviour_logprobs, batch.mask))
        advantages = leave_one_out(scores, batch.group_index, batch.valid)

        # the policy gradient: mean over responses of the token sum of −A log π
        result = forward_responses(policy, batch.prompt_token_ids, batch.response_token_ids, batch.mask)
        weights = reduction_weights(batch.mask, "sequence_sum", batch.valid)
        loss = weighted_sum(reinforce(result.token_logprobs, advantages, batch.mask), weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()

        kl = (batch.behaviour_logprobs - base_logprobs).sum(-1).mean()
        rewards.append(float(batch.rewards.nanmean()))
        print(
            f"step {step}: reward {rewards[-1]:.3f}, score {float(scores.mean()):.3f}, KL to base {float(kl):.2f} nats"
        )
    return rewards


if __name__ == "__main__":
    main()
