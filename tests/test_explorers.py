"""The explorers of the site: their numbers beside those of the notebooks' widgets, and their pages in a
browser, by keyboard, by touch, in both themes, and without JavaScript."""
import importlib.util
import inspect
import itertools
import re
from types import SimpleNamespace
from unittest import mock

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.pictures import CLASSES
from alexnet_nb.data import Augmentation, paper_recipe, prepare, principal_colours
from alexnet_nb.lrn import local_response_norm
from browser import tab
from notebooks import NBS, read_cells

WIDE = {"width": 1400, "height": 900}
# page, the place on it, the notebook's cells: functions, picture, widget
PAGES = {"01_data": ("chances", ["ada4bbb0", "aadd8f41"], "24f8a2f2", "777f337a"),
         "03_model": ("windows", ["fadd8b0a", "ba0d0932", "f9890b3e"], "a59e7e65", "172fae84"),
         "02_lrn": ("lrn", ["829a77b2", "ac2e5911"], "8df8998b", "934a01c1"),
         "04_train": ("valley", ["f6a2d790", "b7082e1a", "a95574d8"], "6403d7a1", "32f601b0")}
FORMULAS = (NBS / "site/formulas.js").read_text(encoding="utf-8")
each_page = pytest.mark.parametrize("name", PAGES)


def run_cells(name: str, ids: list[str], **given) -> dict:
    "What cells of a notebook define, given these names."
    source = {cell["id"]: cell["source"] for cell in read_cells(NBS / f"{name}.ipynb")}
    for cell in ids: exec(source[cell], given)
    return given


def functions(name: str) -> dict:
    "The functions behind the widget of a page, with a figure that draws nothing."
    plt, fig = mock.MagicMock(), mock.MagicMock()
    plt.subplots.return_value = fig, [[None, None]]
    given = dict(torch=torch, np=np, plt=plt, fig=fig, draw_piece=lambda *args: None, vectors=torch.eye(3))
    return run_cells(name, PAGES[name][1], local_response_norm=local_response_norm,
                     Augmentation=Augmentation, **given)


def widget(name: str) -> tuple[dict, dict]:
    "The sliders of a page's widget, and the values with which the picture above them was drawn."
    said, _, picture, live = PAGES[name]
    draw = next(f for key, f in functions(name).items() if key.startswith("draw_") and key != "draw_piece")
    values = {key: p.default for key, p in inspect.signature(draw).parameters.items()}
    run_cells(name, [picture], **{draw.__name__: lambda **options: values.update(options)})
    found = {}
    names = [key for key in dir(ipywidgets) if re.search("Slider$|^Checkbox$|^Dropdown$", key)]
    kinds = {key: getattr(ipywidgets, key) for key in names}
    stand_in = SimpleNamespace(**kinds, interact=lambda _, **sliders: found.update(sliders))
    run_cells(name, [live], widgets=stand_in, CLASSES=CLASSES, **{draw.__name__: draw})
    return found, values


@pytest.fixture(scope="module")
def formulas(chromium):
    "Calls a JavaScript function of a case for many cases; `f` in it is the module of formulas."
    with tab(chromium) as (page, wrong):
        def call(function: str, cases: list) -> list:
            load = 'await import("data:text/javascript;charset=utf-8," + encodeURIComponent(source))'
            script = f"async ([source, cases]) => {{ const f = {load}; return cases.map({function}) }}"
            return page.evaluate(script, [FORMULAS, cases])
        yield call
        assert not wrong


def grid(**values) -> list[dict]:
    "Every combination of these values."
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def test_windows_are_those_of_the_notebook(formulas):
    cases = grid(w=(5, 6, 13, 44, 45, 224, 227, 256), z=(1, 2, 3, 5, 11), s=(1, 2, 3, 4, 8), p=(0, 1, 2, 5),
                 up=(False, True))
    found = formulas("c => [f.windows(c).starts, f.windows(c).left, f.windowsRule(c)]", cases)
    ours = functions("03_model")
    unfit = 0
    for case, (starts, left, rule) in zip(cases, found, strict=True):
        assert (starts, left) == ours["windows"](**case), case
        ours["draw_windows"](**case)
        assert ours["fig"].suptitle.call_args[0][0] == rule
        unfit += not starts
    assert 0 < unfit < len(cases) / 4  # a kernel larger than the input is among them


def test_shares_are_those_of_the_layer(formulas):
    cases = grid(n=(1, 2, 5, 8, 15), k=(1, 2, 10), alpha=(1e-6, 1e-4, 10**-2.5, 1e-2),
                 beta=(0, 0.75, 1.5), loud=(10, 200, 400))
    found = formulas("c => [f.bump(c.loud), f.shares(c, 'mean'), f.shares(c, 'sum')]", cases)
    ours = functions("02_lrn")
    for case, (bump, mean, total) in zip(cases, found, strict=True):
        wanted = ours["shares"](**case)
        close = dict(rtol=1e-5, atol=1e-7)  # the layer computes in float32
        np.testing.assert_allclose(bump, ours["bump"](case["loud"]).flatten(), **close)
        np.testing.assert_allclose(mean, wanted["mean"], err_msg=str(case), **close)
        np.testing.assert_allclose(total, wanted["sum"], err_msg=str(case), **close)


def test_the_window_of_a_map_is_the_layer_s(formulas):
    "The maps that a loud map changes are those in whose window it stands."
    cases = grid(i=(0, 1, 9, 24, 31), n=(1, 2, 5, 8, 15))
    for case, (first, last) in zip(cases, formulas("c => f.lrnWindow(c.i, c.n)", cases), strict=True):
        x = torch.ones(1, 32, 1, 1, requires_grad=True)
        local_response_norm(x, n=case["n"], alpha=1.0)[0, case["i"]].sum().backward()
        assert x.grad is not None
        assert x.grad.flatten().nonzero().flatten().tolist() == [*range(first, last + 1)], case


def test_walks_are_those_of_the_notebook(formulas):
    cases = grid(rate=(0, 0.005, 0.03, 0.095, 0.19, 0.195, 0.25), momentum=(0, 0.5, 0.9, 0.99),
                 decay=(0, 0.0005, 1, 2))
    found = formulas("c => [f.descend(c), f.descend(c).map(f.valley), f.restingPlace(c.decay)]", cases)
    ours = functions("04_train")
    for case, (path, heights, rest) in zip(cases, found, strict=True):
        wanted = ours["descend"](**case)
        np.testing.assert_allclose(path, wanted, rtol=1e-9, atol=1e-9, err_msg=str(case))
        np.testing.assert_allclose(heights, ours["valley"](wanted), rtol=1e-7, atol=1e-12)
        pull = ours["STEEP"] * (np.array(rest) - ours["BOTTOM"]) + case["decay"] * np.array(rest)
        np.testing.assert_allclose(pull, 0, atol=1e-12)
    lengths = {len(path) for path, *_ in found}
    assert 81 in lengths and min(lengths) < 20  # some stay, some leave


def test_the_fate_of_a_walk_is_that_of_its_eigenvalues(formulas):
    "What the explorer says of each direction, beside the matrix that one step of the paper's rule is."
    cases = grid(rate=(0, 0.005, 0.03, 0.0475, 0.095, 0.19, 0.195, 0.25), momentum=(0, 0.3, 0.9, 0.99),
                 decay=(0, 0.0005, 1))
    step, steep = functions("04_train")["paper_step"], (1.0, 20.0)
    found = formulas("c => [f.fate(c, 0), f.fate(c, 1)]", cases)
    seen = set()
    for case, fates in zip(cases, found, strict=True):
        for curvature, fate in zip(steep, fates, strict=True):
            columns = [step(w, v, curvature * w, case["rate"], case["momentum"], case["decay"])
                       for w, v in ((1.0, 0.0), (0.0, 1.0))]
            root = max(np.linalg.eigvals(np.array(columns).T), key=abs)
            assert fate["factor"] == pytest.approx(abs(root), abs=1e-6), (case, curvature)
            if case["rate"] == 0: wanted = "stands"
            elif abs(abs(root) - 1) < 1e-6: wanted = "stays"
            elif abs(root) > 1: wanted = "leaves"
            elif abs(root.imag) > 1e-7: wanted = "swings"
            else: wanted = "leaps" if root.real < -1e-7 else "creeps"
            assert fate["kind"] == wanted, (case, curvature, root)
            seen.add(wanted)
    assert seen >= {"stands", "leaves", "swings", "leaps", "creeps"}


def test_pictures_are_prepared_as_the_library_does(formulas):
    "Enlarged as by Pillow, to the level; cropped, mirrored and tinted as by `prepare`."
    cases = grid(down=(0, 15, 29), right=(4, 26), mirror=(False, True), first=(0, 2.5), second=(-3, 1),
                 third=(0, 2), strength=(0, 0.1, 0.5))[::5]
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    colours = torch.tensor(formulas("c => f.COLOURS", [0])[0], dtype=torch.float64).T
    given = formulas("c => [...f.enlarge(c)]", [picture.flatten().tolist()])[0]
    large = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.array(given).reshape(256, 256, 3), large)
    covariance, mean = colours @ colours.T, torch.zeros(3, dtype=torch.float64)
    choice = run_cells("01_data", ["ada4bbb0"], torch=torch, Augmentation=Augmentation,
                       vectors=principal_colours(covariance)[1])["choice"]
    rgb = "[...f.prepared(large, c)].filter((_, i) => i % 4 < 3)"  # the whole is long: every 97th will do
    all_cases = f"all.cases.map(c => {rgb}.filter((_, i) => i % 97 === 0))"
    script = f"all => {{ const large = f.enlarge(all.picture); return {all_cases} }}"
    found = formulas(script, [{"picture": picture.flatten().tolist(), "cases": cases}])[0]
    for case, levels in zip(cases, found, strict=True):
        strength = case["strength"]
        chance = choice(*(value for key, value in case.items() if key != "strength"))
        wanted = prepare(Image.fromarray(picture), paper_recipe(227, mean, covariance, strength), chance)
        wanted = wanted.clamp(0, 255).permute(1, 2, 0).flatten()[::97]  # the recipe's std is 1/255: levels
        np.testing.assert_allclose(levels, wanted, atol=0.51, err_msg=str(case))


@pytest.mark.cifar10
def test_colours_and_pictures_are_those_of_the_data(formulas, cifar10_dir):
    spec = importlib.util.spec_from_file_location("ten_pictures", NBS.parent / "tools/ten_pictures.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    images = read_cifar10(cifar10_dir, True, may_download=False)
    np.testing.assert_allclose(formulas("c => f.COLOURS", [0])[0], tool.colours(images).T, atol=1e-4)
    stored = np.asarray(Image.open(NBS / "site/ten.png")).astype(int)
    assert np.abs(stored - tool.ten_pictures(images)).max() <= 2  # decoders of JPEG differ a little


def opened(page, address: str, name: str):
    "The explorer of a page that has just been opened, drawn."
    page.goto(f"{address}/{name}.html", wait_until="load")
    explorer = page.locator(f"#explore-{PAGES[name][0]}")
    explorer.locator("svg > *").first.wait_for(state="attached")
    return explorer


@each_page
def test_an_explorer_has_the_widget_s_sliders_and_the_picture_s_values(name, address, chromium):
    sliders, values = widget(name)
    with tab(chromium, viewport=WIDE) as (page, wrong):
        explorer = opened(page, address, name)
        for key, of_widget in sliders.items():
            control = page.locator(f"#explore-{PAGES[name][0]}-{key}-control")
            if isinstance(of_widget, (bool, ipywidgets.Checkbox)):
                assert control.is_checked() == values[key]
                continue
            if isinstance(of_widget, ipywidgets.Dropdown):
                assert control.locator("option").all_inner_texts() == [name for name, _ in of_widget.options]
                assert control.input_value() == str(values[key])
                continue
            has = {word: float(control.get_attribute(word)) for word in ("min", "max", "step")}
            output = explorer.locator(f"output[for='{control.get_attribute('id')}']")
            assert float(output.inner_text()) == pytest.approx(values[key])
            if isinstance(of_widget, ipywidgets.SelectionSlider): steps = [*of_widget.options]
            elif isinstance(of_widget, ipywidgets.FloatLogSlider):
                steps = [10**x for x in np.arange(of_widget.min, of_widget.max + 0.1, of_widget.step)]
            else:
                assert has == {word: getattr(of_widget, word) for word in has}
                continue
            assert has == {"min": 0, "max": len(steps) - 1, "step": 1}
            for i, value in enumerate(steps):
                control.fill(str(i))
                assert float(output.inner_text()) == pytest.approx(value, rel=0.02)
                assert control.get_attribute("aria-valuetext") == output.inner_text()
        assert not wrong


def luminance(colour: str) -> float:
    "Of a CSS colour, as WCAG defines it."
    rgb = [float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def stands_out(page, explorer, dark: bool) -> bool:
    "Can the letters and lines of a drawing be seen on this ground, which is dark or not?"
    ground = page.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
    letters = explorer.locator("svg text").first.evaluate("e => getComputedStyle(e).fill")
    windows = explorer.locator("svg > .window").evaluate_all("all => all.map(e => getComputedStyle(e).fill)")
    curves = explorer.locator("svg .curve").evaluate_all("all => all.map(e => getComputedStyle(e).color)")
    return ((luminance(ground) < 0.2) == dark
            and all(contrast(letters, behind) >= 4.5 for behind in (ground, *windows))
            and all(contrast(curve, ground) >= 3 for curve in curves))


def state(explorer) -> tuple[str, ...]:
    "What an explorer shows: its drawing, the formula, the words, and the drawing's description."
    drawing = explorer.locator("svg")
    words = [explorer.locator(f".explorer-{part}").inner_text() for part in ("rule", "words")]
    return drawing.inner_html(), *words, drawing.get_attribute("aria-label")


@each_page
def test_a_key_moves_the_drawing_and_the_numbers(name, address, chromium):
    with tab(chromium, viewport=WIDE, color_scheme="light") as (page, wrong):
        explorer = opened(page, address, name)
        assert stands_out(page, explorer, dark=False)
        picture = page.locator(".cell:has(.explorer) .cell-output-display")
        assert picture.count() == 1 and not picture.is_visible(), "the stored picture gives its place"
        first, slider = state(explorer), explorer.locator("input[type=range]").first
        output = explorer.locator("output").first
        assert explorer.get_by_label(explorer.locator("label").first.inner_text(), exact=True).count() == 1
        slider.focus()
        for key in ("ArrowLeft", "Home", "End"):
            before, number = state(explorer), output.inner_text()
            page.keyboard.press(key)
            after = state(explorer)
            assert output.inner_text() != number and after[0] != before[0] and after[3] != before[3], key
            assert after[1] in after[3] and after[2] in after[3], "described otherwise than said"
            assert after[1:3] != before[1:3], key
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id")
        assert focused == explorer.locator("input[type=range]").nth(1).get_attribute("id")
        explorer.get_by_role("button").click()
        assert state(explorer) == first and not wrong


def test_the_drawing_has_the_notebook_s_windows(address, chromium):
    "Windows, pixels and the formula, after the sliders went to 9 pixels, kernel 3 and stride 4 by keyboard."
    with tab(chromium, viewport=WIDE) as (page, wrong):
        explorer = opened(page, address, "03_model")
        for key, value in dict(w=9, z=3, s=4, p=0).items():
            slider = page.locator(f"#explore-windows-{key}-control")
            slider.focus()
            page.keyboard.press("Home")
            for _ in range(value - int(slider.get_attribute("min"))): page.keyboard.press("ArrowRight")
        starts, left = functions("03_model")["windows"](9, 3, 4)
        kinds = "window", "read", "missed", "ghost"
        count = {kind: explorer.locator(f"svg > .{kind}").count() for kind in kinds}
        in_legend = 1
        read = {i for start in starts for i in range(start, start + 3)}
        assert left == 2 and count["ghost"] == 1 + in_legend, "a third window does not fit"
        assert count["window"] == len(starts) + in_legend and count["read"] == len(read) + in_legend
        assert count["missed"] == 9 - len(read) + in_legend
        assert explorer.locator(".explorer-rule").inner_text().endswith("2 windows; pixels: 2 left over")
        assert "1 pixel short" not in state(explorer)[2] and "2 pixels short" in state(explorer)[2]
        page.get_by_label("up").first.check()
        assert "the last one lacks 2" in state(explorer)[1] and not wrong


@each_page
def test_a_finger_moves_a_slider_in_the_dark(name, address, chromium):
    options = dict(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    with tab(chromium, **options) as (page, wrong):
        explorer = opened(page, address, name)
        assert stands_out(page, explorer, dark=True)
        slider, before = explorer.locator("input[type=range]").nth(1), state(explorer)
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box["height"] >= 24, "large enough for a finger"
        page.touchscreen.tap(box["x"] + 0.35 * box["width"], box["y"] + box["height"] / 2)
        assert state(explorer)[0] != before[0]
        letters = explorer.locator("svg text").first.evaluate("e => e.getBoundingClientRect().height")
        assert letters > 10, "letters keep their size on a narrow page"
        assert not wrong


@each_page
def test_without_javascript_the_picture_stands(name, address, chromium):
    with tab(chromium, viewport=WIDE, java_script_enabled=False) as (page, wrong):
        page.goto(f"{address}/{name}.html")
        place = page.locator(f"#explore-{PAGES[name][0]}")
        assert place.count() == 1 and not place.is_visible() and place.inner_html() == ""
        pictures = page.locator(f"xpath=//div[@id='explore-{PAGES[name][0]}']/preceding::img")
        assert pictures.last.is_visible() and len(pictures.last.get_attribute("alt")) > 40
        assert page.locator("main input[type=range]").count() == 0 and not wrong
