"""In a real Chromium: the page's numbers are Python's, its controls work, nothing is asked of the network."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import WIDE, opened, until

from bsharp.algorithm import sharpening, task_reward, tempered, tilted, weighted
from bsharp.reporting.theory_page import write_theory_page
from bsharp.theory.illustration import page_worlds
from bsharp.theory.targets import covariance, expectation, moments, optimum, tilt

PHONE = {"width": 390, "height": 844}
HOOK = "window.bsharpTheory"
UNWRITTEN = ["NaN", "Infinity", "undefined", "[object"]


@pytest.fixture(scope="module")
def shared(browser: Any, theory_file: Path) -> Iterator[Any]:
    """One page for tests that leave it as any other may find it; what it asked for or said is checked at the end."""
    with opened(browser, theory_file) as page:
        yield page


def put(page: Any, **settings: Any) -> None:
    """The sliders at their defaults but for `settings`, drawn."""
    page.evaluate(f"(wanted) => {{ const t = {HOOK}; t.change({{ ...t.defaults, ...wanted }}); t.draw(); }}", settings)


def figures(page: Any) -> dict[str, dict[str, Any]]:
    """What stands beside the bars, regime by regime, in full precision; None for "–"."""
    return dict(
        page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('.figures')].map((list) => [list.id.replace('figures-', ''),"
            "Object.fromEntries([...list.querySelectorAll('dd')].map(({dataset}) =>"
            "[dataset.key, dataset.value ? Number(dataset.value) : null]))]))"
        )
    )


def rubbish(page: Any) -> list[str]:
    text = "(document.querySelector('main').innerHTML + document.querySelector('#controls').innerHTML)"
    return list(
        page.evaluate(f"(words) => {{ const text = {text}; return words.filter((w) => text.includes(w)); }}", UNWRITTEN)
    )


def test_on_opening_the_page_agrees_with_python_in_every_reference_figure(shared: Any) -> None:
    found = shared.evaluate(f"{HOOK}.checkItself()")
    assert found["count"] > 1500
    assert found["worst"] <= 1e-9
    assert f"compared {found['count']} of its figures" in shared.locator("#checked").inner_text()
    assert shared.locator("#checked.warning").count() == 0


@pytest.mark.parametrize(
    ("alpha", "beta_inv", "c", "normalisation"),
    [(3.0, 5.0, 0.0, "sum"), (0.7, 40.0, 0.3, "mean"), (6.0, 0.5, 1.5, "weighted_mean")],
)
def test_the_figures_beside_the_bars_are_those_of_the_exact_optima(
    shared: Any, alpha: float, beta_inv: float, c: float, normalisation: str
) -> None:
    rho = 0.65 if normalisation == "weighted_mean" else None
    objectives = {
        "tempered": tempered(alpha, normalisation, rho),
        "tilted": tilted(alpha, beta_inv, normalisation, rho),
        "sharpened": sharpening(normalisation, rho)
        if c == 0
        else weighted(base_loglikelihood=1, kl_to_base=c, normalisation=normalisation, rho=rho),
        "task": task_reward() if c == 0 else weighted(task=1, kl_to_base=c),
    }
    for name, world in page_worlds().items():
        settings = {"alpha": alpha, "beta_inv": beta_inv, "c": c, "normalisation": normalisation, "rho": 0.65, "k": 5}
        put(shared, world=name, **settings)
        shown = figures(shared)
        for regime, objective in objectives.items():
            target = optimum(world, objective)
            exact = moments(target.log_policy, world)
            wanted = {
                "reward": exact.reward,
                "length": exact.length,
                "entropy": exact.entropy,
                "kl": exact.kl_policy_base,
                "log_z": target.log_partition if objective.entropy_weight > 0 else None,
                "pass_at_k": 1 - (1 - exact.reward) ** 5,
            }
            for key, value in wanted.items():
                assert shown[regime][key] == pytest.approx(value, abs=1e-9), (name, regime, key)


def said(page: Any, section: str) -> str:
    return str(page.locator(f"#{section}-said").inner_text())


def test_without_a_kl_term_log_z_is_a_dash_that_says_why(shared: Any) -> None:
    for c, shown in ((0, "–"), (0.5, None)):
        put(shared, c=c)
        for regime in ("sharpened", "task"):
            figure = shared.locator(f"#figures-{regime} dd[data-key=log_z]")
            assert (figure.inner_text() == "–") == (shown == "–")
            title = figure.evaluate("(figure) => figure.parentElement.title")
            assert ("defined for c > 0 only" in title) == (shown == "–")


def test_the_p0_said_beside_the_tilt_gives_the_accuracy_that_is_drawn(shared: Any) -> None:
    for alpha, start in ((2, "tempered at α = 2"), (1, "The base starts at")):
        put(shared, world="wrong_mode", alpha=alpha, beta_inv=3)
        text = said(shared, "tilt")
        assert start in text
        p0, accuracy = (float(re.search(rf"{word} ([0-9.]+[0-9])", text)[1]) for word in ("p₀ =", "accuracy is"))  # type: ignore[index]
        assert accuracy == pytest.approx(p0 * np.exp(3) / (p0 * np.exp(3) + 1 - p0), abs=2e-3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"world": "wrong_mode", "alpha": 2}, True),
        ({"world": "wrong_mode", "alpha": 1}, False),
        ({"world": "short_mode", "alpha": 2}, False),
        ({"world": "fixed_length", "alpha": 2}, False),
        ({"world": "loop", "alpha": 2, "normalisation": "mean"}, False),
    ],
)
def test_a_length_that_grows_under_the_sum_is_called_untypical(
    shared: Any, settings: dict[str, Any], expected: bool
) -> None:
    put(shared, **settings)
    assert ("Shortening is typical, not a theorem" in said(shared, "length")) == expected
    if expected:
        world = page_worlds()[settings["world"]]
        slope = float(covariance(world.base_logprob, world.lengths.double(), world.base_logprob))
        assert f"at the base, α = 1, the slope is −{-slope:.3f}" in said(shared, "length")


def test_nothing_is_undefined_at_the_ends_of_the_sliders(shared: Any) -> None:
    worlds = shared.evaluate(f"Object.keys({HOOK}.worlds)")
    worlds.append(worlds[0])  # nine, so that no world meets every second setting only
    ends = itertools.product((0, 10), (0, 10_000), (0, 0.001, 100), ("sum", "mean"))
    nudges = itertools.cycle((0, 10, 10))
    flows = itertools.cycle(("task", "sharpened", "tempered", "tilted", "entropy"))
    simplex = itertools.cycle(("wrong_first", "right_first", "two_right"))
    for (alpha, beta_inv, c, normalisation), world in zip(ends, itertools.cycle(worlds), strict=False):
        settings = {"alpha": alpha, "beta_inv": beta_inv, "c": c, "normalisation": normalisation, "k": 64}
        settings |= {"epsilon": next(nudges), "flow": next(flows), "simplex": next(simplex)}
        put(shared, world=world, **settings)
        assert rubbish(shared) == [], (world, settings)


def curve(page: Any, line: str, scale: str = "scale") -> Any:
    """A drawn line as (x, y) in the units of its axes."""
    path, place = page.evaluate(
        "([line, host, scale]) => [document.querySelector(line).getAttribute('d'),"
        "JSON.parse(document.querySelector(host).dataset[scale])]",
        [line, line.split(" ")[0], scale],
    )
    x, y = np.array([[float(number) for number in point.split()] for point in re.split("[ML]", path)[1:]]).T
    across = (x - place["left"]) / (place["right"] - place["left"])
    up = (place["bottom"] - y) / (place["bottom"] - place["top"])
    return (
        place["low"] + across * (place["high"] - place["low"]),
        place["yLow"] + up * (place["yHigh"] - place["yLow"]),
    )


def test_the_drawn_curves_slopes_and_tangents_are_those_of_the_exact_paths(shared: Any) -> None:
    for name, alpha, beta_inv in (("wrong_mode", 3.0, 2.0), ("turning", 1.5, 4.0)):
        world = page_worlds()[name]
        put(shared, world=name, alpha=alpha, beta_inv=beta_inv)
        drawn = {  # line, what it shows, what its slope is the covariance with
            "#power-plot": ("tempered", world.rewards, world.base_logprob),
            "#tilt-plot": ("tilted", world.rewards, world.rewards),
            "#length-plot": ("sum", world.lengths.double(), world.base_logprob),
        }
        for host, (line, values, source) in drawn.items():
            along = [(x, y, True) for x, y in zip(*curve(shared, f"{host} .line.{line}"), strict=True)]
            if host != "#length-plot":
                along += [
                    (x, y, False) for x, y in zip(*curve(shared, f"{host} .slope.line", "slopeScale"), strict=True)
                ]
            for x, y, is_value in along[::16]:
                policy = tilt(world, x, alpha) if host == "#tilt-plot" else tilt(world, 0.0, x)
                exact = expectation(policy, values) if is_value else covariance(policy, values, source)
                assert y == pytest.approx(float(exact), abs=2e-3)
            (x0, x1), (y0, y1) = curve(shared, f"{host} .tangent")
            policy = tilt(world, beta_inv if host == "#tilt-plot" else 0.0, alpha)
            assert (y1 - y0) / (x1 - x0) == pytest.approx(float(covariance(policy, values, source)), abs=2e-3)
    put(shared, world="wrong_mode", alpha=3)
    heights = "['gain', 'loss'].map((kind) => document.querySelector('#power-plot .area.' + kind).getBBox().height)"
    gain, loss = shared.evaluate(heights)
    assert gain == 0 < loss


def test_a_nudge_past_the_gap_flips_the_sharpened_optimum_and_not_the_task_rewards(shared: Any) -> None:
    put(shared, world="near_tie", alpha=4, epsilon=0.009)
    accuracy = "#nudge-rows tr[data-regime={}] td:last-child"

    def shown(regime: str) -> float:
        return float(shared.locator(accuracy.format(regime)).get_attribute("data-value"))

    assert (shown("sharpened"), shown("task")) == (1.0, pytest.approx(1))
    assert "it has not" in shared.locator("#nudge-said").inner_text()
    put(shared, world="near_tie", alpha=4, epsilon=0.011)
    assert (shown("sharpened"), shown("task")) == (0.0, pytest.approx(1))
    assert "has flipped" in shared.locator("#nudge-said").inner_text()
    assert shared.evaluate(f"{HOOK}.flipAt({HOOK}.worlds.near_tie, {HOOK}.settings())") == pytest.approx(0.01, abs=1e-9)
    # The log-ratio of a power moves alpha times as far as the base's, that of a pure tilt once, whatever the size.
    for alpha, expected in ((4, "4"), (1, "1")):
        put(shared, world="near_tie", alpha=alpha, epsilon=0.3, beta_inv=2)
        for regime in ("tempered", "tilted"):
            assert shared.locator(f"#nudge-rows tr[data-regime={regime}] td").first.inner_text() == expected


def test_a_leash_lets_only_part_of_the_mass_move_and_the_page_says_how_much(shared: Any) -> None:
    world = page_worlds()["near_tie"]
    put(shared, world="near_tie", alpha=4, epsilon=0.05, c=0.05)
    leashed = optimum(world, weighted(base_loglikelihood=1, kl_to_base=0.05)).policy
    best, second = leashed.argsort(descending=True)[:2]
    exponent = 1 + 1 / 0.05
    weights = leashed.clone()
    weights[best] *= np.exp(-exponent * 0.025)
    weights[second] *= np.exp(exponent * 0.025)
    moved = float((weights / weights.sum() - leashed).abs().sum()) / 2
    assert f"the leash c = 0.05 lets only part of the mass move ({moved:.3g})" in said(shared, "nudge")
    put(shared, world="near_tie", alpha=4, epsilon=0.05)
    assert "with c = 0 all mass moves" in said(shared, "nudge")


def test_where_both_responses_of_the_nudge_are_graded_alike_the_page_says_that_accuracy_stays(shared: Any) -> None:
    for world, alike in (("wrong_mode", True), ("near_tie", False)):
        for epsilon in (0, 3):
            put(shared, world=world, epsilon=epsilon)
            assert ("Both are wrong" in said(shared, "nudge")) == alike
            cells = shared.locator("#nudge-rows tr[data-regime=sharpened] td")
            assert float(cells.nth(1).get_attribute("data-value")) == pytest.approx(float(epsilon > 0))
            before, after = cells.nth(2).inner_text().split(" → ")
            assert (before == after) == (alike or epsilon == 0)


def test_no_nudge_is_drawn_at_the_tick_that_says_0(shared: Any) -> None:
    for epsilon, label in ((0, "0"), (0.001, "0.001"), (0.1, "0.1")):
        put(shared, world="near_tie", epsilon=epsilon)
        centre = float(shared.locator("#nudge-plot circle.task").get_attribute("cx"))
        ticks = shared.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#nudge-plot .tick[text-anchor=middle]')]"
            ".map((tick) => [tick.textContent, Number(tick.getAttribute('x'))]))"
        )
        assert ticks[label] == pytest.approx(centre, abs=0.02)


def test_both_flows_are_those_of_python(shared: Any, theory_data: dict[str, Any]) -> None:
    script = f"""({{world, settings, objective, start, times}}) => {{
        const t = {HOOK}, {{values, h}} = t.flowOf(t.simplex[world], settings, objective), from = start.map(Math.log);
        return {{
            natural: times.map((time) => t.naturalFlow(from, values, h, time).map(Math.exp)),
            euclidean: t.euclideanFlow(from, values, h, times).map((logp) => logp.map(Math.exp)) }}; }}"""
    assert len(theory_data["flows"]) == 10
    for row in theory_data["flows"]:
        found = shared.evaluate(script, row)
        np.testing.assert_allclose(found["natural"], row["natural"], atol=1e-9)
        np.testing.assert_allclose(found["euclidean"], row["euclidean"], atol=1e-4)


def test_without_a_kl_term_the_triangle_has_one_basin_and_entropy_minimisation_has_three(shared: Any) -> None:
    basins = (
        "[...document.querySelectorAll('.basin')].map((b) => [Number(b.dataset.end), b.classList.contains('right')])"
    )
    put(shared, simplex="wrong_first", flow="sharpened")
    assert shared.evaluate(basins) == [[0, False]]
    put(shared, simplex="wrong_first", flow="task")
    assert shared.evaluate(basins) == [[1, True]]
    put(shared, simplex="wrong_first", flow="entropy")
    assert shared.evaluate(basins) == [[0, False], [1, True], [2, False]]
    for flow in ("tempered", "tilted"):
        put(shared, simplex="wrong_first", flow=flow)
        assert shared.evaluate(basins) == []
    # Starts on either side of a border of two basins end in the two corners.
    for start, corner in (([0.36, 0.34, 0.3], 0), ([0.34, 0.36, 0.3], 1), ([0.3, 0.34, 0.36], 2)):
        put(shared, simplex="wrong_first", flow="entropy", start=start)
        end = shared.evaluate("JSON.parse(document.getElementById('simplex-plot').dataset.end)")
        assert end[corner] == pytest.approx(1)
    put(shared, simplex="wrong_first", flow="task")
    assert "every start ends in the same corner" in said(shared, "simplex")
    put(shared, simplex="two_right", flow="task", start=[0.5, 0.4, 0.1])
    assert "every start ends on the same side" in said(shared, "simplex")
    end = shared.evaluate("JSON.parse(document.getElementById('simplex-plot').dataset.end)")
    assert end == pytest.approx([0, 0.8, 0.2])  # right answers keep their ratio


def test_the_buttons_to_try_show_what_they_say(shared: Any) -> None:
    buttons = shared.locator("[data-try]")
    accuracies: dict[str, list[float]] = {}
    for at in range(buttons.count()):
        buttons.nth(at).evaluate("(button) => button.click()")
        shared.evaluate(f"{HOOK}.draw()")
        assert rubbish(shared) == []
        shown = figures(shared)
        accuracies[buttons.nth(at).inner_text()] = [
            shown[regime]["reward"] for regime in ("base", "tempered", "tilted")
        ]
    base, power, _ = accuracies["Wrong mode, α up: accuracy falls"]
    assert power < 0.5 * base
    base, _, tilt = accuracies["Same base, β⁻¹ up: accuracy rises"]
    assert tilt > 0.9 > base
    base, power, _ = accuracies["Right mode: sharpening works"]
    assert power > base
    base, early, _ = accuracies["First down, then up"]
    late = accuracies["…and much later"][1]
    assert early < base < late


def test_keys_move_a_slider_and_the_start_and_the_address_keeps_them(browser: Any, theory_file: Path) -> None:
    with opened(browser, theory_file) as page:
        page.focus("#alpha")
        page.keyboard.press("ArrowRight")
        until(page, "document.querySelector('output[data-key=alpha]').textContent === '2.05'")
        assert page.locator("#alpha").get_attribute("aria-valuetext") == "2.05"
        page.focus("#c")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        until(page, "document.querySelector('output[data-key=c]').textContent === '0.001'")
        page.focus("#simplex-plot")
        before = page.evaluate("document.querySelector('.start').getAttribute('cy')")
        page.keyboard.press("ArrowUp")
        until(page, f"document.querySelector('.start').getAttribute('cy') < {before}")
        page.select_option("#world", "loop")
        until(page, "location.hash.includes('alpha=2.05') && location.hash.includes('world=loop')")
        address = page.url
        page.locator("#reset").click()
        until(page, "location.hash === ''")
        page.evaluate("(hash) => { location.hash = hash; }", address.split("#")[1])
        until(page, "document.querySelector('output[data-key=alpha]').textContent === '2.05'")
        assert page.locator("#world").input_value() == "loop"
        assert page.evaluate(f"{HOOK}.settings().start[0]") == pytest.approx(0.49, abs=1e-3)


def test_an_address_full_of_nonsense_changes_nothing(browser: Any, theory_file: Path) -> None:
    nonsense = "#alpha=NaN&c=-1e999&beta_inv=1e99&world=<script>&flow=x&start=1,2&k=2.6&rho=&__proto__=1&at=../x&q=1"
    with opened(browser, theory_file) as page:
        page.evaluate("(hash) => { location.hash = hash; }", nonsense)
        until(page, f"{HOOK}.settings().beta_inv === 10000")
        found = page.evaluate(f"{HOOK}.settings()")
        assert found == page.evaluate(f"{HOOK}.defaults") | {"beta_inv": 10_000, "c": 0, "k": 3} | {"c": found["c"]}
        assert found["c"] == 0
        assert rubbish(page) == []


def test_a_press_in_a_chart_sets_its_slider_and_one_in_the_triangle_the_start(browser: Any, theory_file: Path) -> None:
    with opened(browser, theory_file) as page:
        for host, key in (("#power-plot", "alpha"), ("#tilt-plot", "beta_inv"), ("#nudge-plot", "epsilon")):
            page.locator(host).scroll_into_view_if_needed()
            scale = page.evaluate(f"JSON.parse(document.querySelector('{host}').dataset.scale)")
            middle = (scale["left"] + scale["right"]) / 2
            page.locator(host).click(position={"x": middle, "y": 60})
            expected = (scale["low"] * scale["high"]) ** 0.5 if scale.get("log") else (scale["low"] + scale["high"]) / 2
            until(page, f"Math.abs({HOOK}.settings().{key} / {expected} - 1) < 0.06")
        page.locator("#simplex-plot").scroll_into_view_if_needed()
        # The middle of the triangle, in one reading: the drawing is replaced whenever a slider moves.
        box = "document.querySelector('.edge').getBoundingClientRect()"
        place = f"((b) => [b.x + b.width / 2, b.y + b.height * 2 / 3])({box})"
        page.mouse.click(*page.evaluate(f"{HOOK}.draw(), {place}"))
        until(page, f"{HOOK}.settings().start !== null")
        assert page.evaluate(f"{HOOK}.settings().start") == pytest.approx([1 / 3] * 3, abs=0.02)


def test_play_moves_a_slider_until_it_is_stopped(browser: Any, theory_file: Path) -> None:
    with opened(browser, theory_file) as page:
        button = page.locator("[data-play=alpha]")
        button.click()
        until(page, f"{HOOK}.settings().alpha > 2.2")
        assert button.get_attribute("aria-label") == "Stop α"
        button.click()
        stopped = page.evaluate(f"{HOOK}.settings().alpha")
        page.wait_for_timeout(200)
        assert page.evaluate(f"{HOOK}.settings().alpha") == stopped
        assert button.get_attribute("aria-label") == "Play α"


@pytest.mark.parametrize("world", ["wrong_mode", "loop"])
def test_a_phone_shows_the_page_without_sideways_scrolling(browser: Any, theory_file: Path, world: str) -> None:
    with opened(browser, theory_file, viewport=PHONE, has_touch=True) as page:
        put(page, world=world, beta_inv=10_000, normalisation="weighted_mean")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert page.locator("#controls").get_attribute("open") is None
        page.locator("#controls > summary").click()
        assert page.locator("#alpha").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


CONTRAST = """() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
    .getContext('2d', {willReadFrequently: true});
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => { for (let e = element; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor); if (colour[3] > 250) return colour; } return [255, 255, 255]; };
  const low = [];
  for (const element of document.querySelectorAll('h1,h2,h3,p,b,dt,dd,label,output,button,th,td,summary,a,svg text,math')) {
    if (!element.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    const [one, other] = [light(rgb(svg ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const name = element.tagName + ' ' + element.getAttribute('class');
    if (ratio < 4.5) low.push([name, element.textContent.slice(0, 30), ratio].join(' '));
  }
  return low; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_on_its_ground(browser: Any, theory_file: Path, scheme: str) -> None:
    with opened(browser, theory_file, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate(CONTRAST) == []
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme") != scheme


def test_formulas_are_set_by_the_browser(shared: Any) -> None:
    sizes = shared.evaluate(
        "[...document.querySelectorAll('.formula math')].map((m) => m.getBoundingClientRect().height)"
    )
    assert len(sizes) > 12
    assert min(sizes) > 10
    # A fraction is set as one: numerator above denominator.
    apart = """(() => { const [top, bottom] = [...document.querySelector('mfrac').children].map((c) => c.getBoundingClientRect());
        return top.bottom <= bottom.top + 2; })()"""
    assert shared.evaluate(apart) is True


def test_on_paper_there_are_pictures_and_derivations_but_no_controls(browser: Any, theory_file: Path) -> None:
    with opened(browser, theory_file) as page:
        page.emulate_media(media="print")
        assert not page.locator("#alpha").is_visible()
        assert not page.locator(".tries").first.is_visible()
        assert page.locator(".drawing svg").count() >= 10
        assert page.locator(".derivation").first.is_visible()
        pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
        assert 6 <= pages <= 8  # a section, with its derivation, on a page


def test_names_and_responses_stay_text(browser: Any, theory_data: dict[str, Any], tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror='window.__pwned=1'>\"'&"
    changed = {
        **theory_data,
        "worlds": [
            {**w, "name": hostile, "text": [hostile + text for text in w["text"]]} for w in theory_data["worlds"]
        ],
        "simplex": [{**w, "name": hostile, "text": [hostile + t for t in w["text"]]} for w in theory_data["simplex"]],
    }
    with opened(browser, write_theory_page(changed, tmp_path / "theory.html"), viewport=WIDE) as page:
        assert page.locator("main img").count() == 0
        assert hostile[:20] in page.locator("#simplex-said").inner_text()
