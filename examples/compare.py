"""A comparison in a few lines: task reward against sharpening, one seed, a few steps."""

import bsharp

if __name__ == "__main__":  # the runs are worker processes, which import this file again
    config = bsharp.CompareConfig(
        regimes=("task_reward", "sharpening"),
        seeds=(0,),
        steps=10,
        evaluation={"problems": 63, "samples": 4},
        validation={"problems": 42, "samples": 2, "every": 5},
    )
    results = bsharp.compare(config, out="runs/example")
    print(results["verdict"]["sentence"])
    for name, regime in results["regimes"].items():
        delta = regime["delta"]
        print(f"{name}: {100 * delta['estimate']:+.1f} points [{100 * delta['low']:+.1f}, {100 * delta['high']:+.1f}]")
