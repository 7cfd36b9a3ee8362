"""The page "Try it" in a real browser: the network answers there as it does here, on the same pixels, and
nothing is fetched or sent once it has arrived."""
import base64
import functools
import hashlib
import io
import json
import re
import shutil
import subprocess
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import PIL
import pytest
import torch
import yaml
from PIL import Image

from alexnet_nb.base.cifar10 import read_cifar10
from alexnet_nb.base.pictures import CLASSES, open_rgb
from alexnet_nb.base.weights import PRETRAINED, photographs
from alexnet_nb.data import prepare
from alexnet_nb.inference import UNSURE_BELOW, load_pretrained, predict, probabilities
from alexnet_nb.inspection import layer_outputs
from browser import browser, needed, npm_file, tab
from common import NBS, ROOT

needed()
SCRIPT = (NBS / "site/try_it.js").read_text(encoding="utf-8")
DIST = npm_file("onnxruntime-web/package.json").parent / "dist"
CDN = "https://cdn.jsdelivr.net/npm/onnxruntime-web@"
LONG = 120_000  # ms: 19 MB through a test's own route, on busy cores


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The page alone, rendered as tools/site.py renders all of them, with the network beside it; its address."
    from nbdev.processors import FilterDefaults  # the three are development requirements
    from nbdev.serve_drv import exec_nb
    from smalldocs.site import build

    from alexnet_nb.engine.export import main
    root = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "_quarto.yml", root)
    shutil.copy(NBS / "styles.css", root)
    for folder in ("site", "images"): shutil.copytree(NBS / folder, root / folder)
    for name in ("index", "try_it"): exec_nb(NBS / f"{name}.ipynb", root / f"{name}.ipynb", FilterDefaults)
    build(root, quiet=True)
    assert main([str(root / "_docs/site/alexnet.onnx"), "--compact", "--layers"]) == 0
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root / "_docs")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    with browser("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as started:
        yield started


def from_npm(route, *, change=lambda content: content):
    "Answers a request to the CDN with npm's file."
    name = route.request.url.rpartition("/")[2]
    route.fulfill(body=change((DIST / name).read_bytes()), headers={"access-control-allow-origin": "*"},
                  content_type="text/javascript" if name.endswith("js") else "application/wasm")


@pytest.fixture(scope="module")
def opened(site, chromium):
    """The page with its network, the addresses asked for before and after the click and since it arrived, and
    what went wrong. From then on the browser is offline."""
    with tab(chromium, viewport={"width": 1400, "height": 900}) as (page, wrong):
        asked = {"before": [], "after": [], "since": []}
        when = ["before"]
        page.on("request", lambda request: asked[when[0]].append(request.url)
                if request.url.startswith("http") else None)
        page.route(f"{CDN}**", from_npm)
        page.goto(f"{site}/try_it.html", wait_until="load")
        page.wait_for_selector("#try-fetch")
        when[0] = "after"
        page.focus("#try-fetch")
        page.keyboard.press("Enter")
        page.wait_for_selector(".try-load", state="hidden", timeout=LONG)
        when[0] = "since"
        page.context.set_offline(True)
        yield page, asked, wrong


@pytest.fixture(scope="module")
def network(): return load_pretrained("cifar10")


def png(picture: Image.Image, **options) -> str:
    picture.save(file := io.BytesIO(), "png", **options)
    return base64.b64encode(file.getvalue()).decode()


ASK = """async files => {  // through the page's own input, one after the other
    const input = document.getElementById("try-file"), found = [];
    for (const file of files) {
        const bytes = Uint8Array.from(atob(file), c => c.charCodeAt(0)), list = new DataTransfer();
        list.items.add(new File([bytes], "picture", {type: "image/png"}));
        const answered = new Promise(done => document.addEventListener("answered", done, {once: true}));
        input.files = list.files;
        input.dispatchEvent(new Event("change"));
        await answered;
        found.push([...document.querySelectorAll("#try-bars li")].map(line => +line.dataset.probability));
    }
    return found;
}"""


def seen(page) -> np.ndarray:
    "The pixels of what the page shows as what the network gets."
    address = page.evaluate("document.getElementById('try-seen').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def prepared(picture: Image.Image, network) -> np.ndarray:
    "The pixels that the library gives the network."
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.recipe.mean, network.recipe.std))
    pixels = (prepare(picture, network.recipe) * std + mean) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    return pixels.round().byte().permute(1, 2, 0).numpy()


# ---------------------------------------------------------------- what the page is made of

def test_the_files_from_the_cdn_are_npms_in_one_version():
    version = re.search(r"^const VERSION = '(.*)';", SCRIPT, re.M)[1]
    pinned = json.loads((ROOT / "tests/package.json").read_text())["dependencies"]["onnxruntime-web"]
    assert version == pinned == json.loads((DIST.parent / "package.json").read_text())["version"]
    listed = re.findall(r"url: `\$\{CDN\}(.*?)`, bytes: (\d+),\s+integrity: '(sha384-.*?)'", SCRIPT)
    assert [name for name, *_ in listed] == ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"]
    for name, size, integrity in listed:
        whole = (DIST / name).read_bytes()
        assert len(whole) == int(size)
        assert f"sha384-{base64.b64encode(hashlib.sha384(whole).digest()).decode()}" == integrity
    assert set(re.findall(r"https?://[^/]*", SCRIPT)) == {"https://cdn.jsdelivr.net"}


def test_the_page_knows_the_network(opened, network):
    page, *_ = opened
    about = json.loads(page.get_attribute("#try-it", "data-network"))
    recipe = network.recipe
    assert about["recipe"]["size"] == recipe.size and about["recipe"]["first_to"] == recipe.first_to
    assert recipe.short_side is None  # nbs/site/resize.js would have to crop
    assert tuple(about["classes"]) == network.classes == CLASSES and about["unsure_below"] == UNSURE_BELOW
    assert about["bytes"] == (PRETRAINED / "cifar10.safetensors").stat().st_size
    assert "82.7 %" in page.inner_text("main")


def test_both_scripts_are_modules_that_parse():
    if not (node := shutil.which("node")): pytest.skip("no node to read the scripts with")
    for name in ("try_it.js", "resize.js"):
        run = subprocess.run([node, "--input-type=module", "--check"], capture_output=True, text=True,
                             input=(NBS / "site" / name).read_text(encoding="utf-8"))
        assert run.returncode == 0, run.stderr


def test_the_workflow_puts_the_network_beside_the_page():
    "After the site is rendered, and before it is published, where the script looks for it."
    workflow = yaml.safe_load((ROOT / ".github/workflows/docs.yaml").read_text(encoding="utf-8"))
    steps = [step.get("run", step.get("uses", "")) for step in workflow["jobs"]["site"]["steps"]]
    export = steps.index("alexnet_export _docs/site/alexnet.onnx --compact --layers")
    assert next(n for n, step in enumerate(steps) if "tools/site.py --quarto" in step) < export
    assert export < next(n for n, step in enumerate(steps) if "upload-pages-artifact" in step)
    assert "new URL('alexnet.onnx', import.meta.url)" in SCRIPT and "    - site\n" in (
        ROOT / "_quarto.yml").read_text(encoding="utf-8")


# ---------------------------------------------------------------- the same pixels

WIDE = [(32, 32), (31, 50), (50, 31), (34, 33), (227, 227), (240, 228), (640, 480), (1000, 33), (5, 3)]
TALL = [(33, 40), (64, 100), (300, 640), (1, 90), (227, 400)]  # Pillow begins with their columns since 13


@pytest.mark.parametrize("sizes", [WIDE, pytest.param(TALL, marks=pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 always begins with the rows"))],
    ids=["wide", "tall"])
def test_the_page_resizes_as_the_library_does(sizes, opened, network):
    "Bit for bit, noise of many sizes, given the same pixels."
    page, *_ = opened
    for width, height in sizes:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        page.evaluate(ASK, [png(Image.fromarray(noise))])
        ours, theirs = prepared(Image.fromarray(noise), network), seen(page)
        assert ours.shape == theirs.shape == (227, 227, 3)
        assert (ours != theirs).sum() == 0, (width, height)


def test_a_picture_that_lies_on_its_side_or_is_transparent(opened, network, tmp_path):
    "Upright as EXIF says, and on white. A browser may mix transparent pixels with another rounding."
    page, *_ = opened
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for picture, options, most in ((Image.fromarray(noise[..., :3]), dict(exif=exif), 0),
                                   (Image.fromarray(noise), {}, 2)):
        file = tmp_path / "picture.png"
        file.write_bytes(base64.b64decode(png(picture, **options)))
        page.evaluate(ASK, [base64.b64encode(file.read_bytes()).decode()])
        ours, theirs = prepared(open_rgb(file), network).astype(int), seen(page).astype(int)
        assert np.abs(ours - theirs).max() <= most
    assert "60 × 40" in page.inner_text("#try-caption")


# ---------------------------------------------------------------- the same answers

def compare(page, images, network):
    "The same top class and probabilities, of every picture."
    theirs = torch.tensor(page.evaluate(ASK, [png(image) for image in images]))
    with torch.inference_mode():
        batches = torch.stack([prepare(image, network.recipe) for image in images]).split(50)
        ours = torch.cat([probabilities(network, batch) for batch in batches])
    assert theirs.shape == ours.shape == (len(images), 10)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-3)


def test_200_photographs_get_the_same_answers(opened, network):
    "Those of the package, all of them test pictures of CIFAR-10."
    pictures = photographs()
    assert len(pictures) == 200
    compare(opened[0], [pictures[k] for k in range(200)], network)


@pytest.mark.cifar10
def test_200_more_of_cifar10_get_the_same_answers(opened, network, cifar10_dir):
    test = read_cifar10(cifar10_dir, False, may_download=False)
    compare(opened[0], [test[k] for k in range(0, len(test), len(test) // 200)], network)


def test_the_ten_samples(opened, network):
    "By mouse and by keyboard; what is said is what the bars show."
    page, *_ = opened
    pictures, buttons = photographs(), page.locator(".try-samples button")
    assert buttons.count() == 10
    for k in range(10):
        wait = page.evaluate_handle("({done: new Promise(d => document.addEventListener('answered', d, "
                                    "{once: true}))})")
        if k % 2: buttons.nth(k).click()
        else:
            buttons.nth(k).focus()
            page.keyboard.press("Enter")
        wait.evaluate("({done}) => done.then(() => true)")
        ours = predict(network, pictures[k])
        said, first = page.inner_text("#try-says"), CLASSES[ours.argmax()]
        assert first in page.inner_text("#try-bars .try-first") and first in said
        assert said.startswith("Not sure" if ours.max() < UNSURE_BELOW else "This is a")


def test_what_each_layer_makes_of_it(opened, network):
    page, *_ = opened
    picture = photographs()[1]
    page.evaluate(ASK, [png(picture)])
    page.click("#try-layers summary")
    page.wait_for_selector("[data-layer=fc7] li")
    out = next(layer_outputs(network.model, [prepare(picture, network.recipe)[None]]))
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        place = page.locator(f"[data-layer={name}]")
        levels = place.locator("canvas").evaluate("""canvas => { const {data} = canvas.getContext("2d")
            .getImageData(0, 0, canvas.width, canvas.height); return new Set(data).size; }""")
        assert levels > 50 and name in place.locator("canvas").get_attribute("aria-label")
        if name == "conv1": continue
        listed = [*map(int, re.findall(r"\d+", place.inner_text().partition("strongest:")[2]))]
        sums = out[name][0].sum((1, 2))
        assert len(listed) == 16 and len({*listed}) == 16
        torch.testing.assert_close(sums[listed], sums.topk(16).values, rtol=1e-3, atol=1e-3)
    units = [*map(int, re.findall(r"unit (\d+)", page.inner_text("[data-layer=fc7]")))]
    torch.testing.assert_close(out["fc7"][0, units], out["fc7"][0].topk(8).values, rtol=1e-3, atol=1e-3)
    added = out["fc7"][0, units[0]] * network.model.classifier[-1].weight[:, units[0]]
    line = page.locator("[data-layer=fc7] li").first.inner_text()
    assert f"{CLASSES[added.argmax()]} +{added.max().item():.2f}" in line
    page.click("#try-layers summary")


def test_the_camera_answers_and_stops(opened):
    "Chromium's own test picture; counted, not judged by its speed, which a busy machine decides."
    page, *_ = opened
    page.evaluate("""() => { window.answers = 0;
        document.addEventListener("answered", () => { window.answers += 1; }); }""")
    page.click("#try-camera")
    page.wait_for_function("window.answers >= 3", timeout=LONG)
    began = time.monotonic()
    page.wait_for_function("window.answers >= 18", timeout=LONG)
    print(f"{15 / (time.monotonic() - began):.1f} answers a second")
    assert re.fullmatch(r"\d+\.\d answers a second", page.inner_text("#try-time"))
    assert page.is_visible("#try-video") and page.get_attribute("#try-camera", "aria-pressed") == "true"
    page.click("#try-camera")
    assert page.is_hidden("#try-video") and page.is_visible("#try-picture")
    page.wait_for_timeout(500)
    before = page.evaluate("window.answers")
    page.wait_for_timeout(500)
    assert page.evaluate("window.answers") == before


def test_a_file_that_is_no_picture_is_named(opened):
    page, *_ = opened
    page.set_input_files("#try-file", {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear"})
    page.wait_for_function("document.getElementById('try-status').textContent.includes('letter.txt')")
    assert "cannot read letter.txt" in page.inner_text("#try-status")
    page.evaluate(ASK, [png(photographs()[0])])  # and the next picture is answered as ever
    assert page.inner_text("#try-status") == ""


CONTRAST = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const over = (c, under) => { const a = c[3] ?? 1; return under.map((v, i) => a * c[i] + (1 - a) * v); };
    const ground = e => e ? over(numbers(getComputedStyle(e).backgroundColor), ground(e.parentElement))
        : [255, 255, 255];
    const found = [];
    for (const e of document.querySelectorAll("#try-it *, #try-layers *")) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility()) continue;
        const under = ground(e), text = over(numbers(getComputedStyle(e).color), under);
        const [a, b] = [light(text), light(under)].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 40)]);
    }
    return found;
}"""


def test_it_can_be_read_in_both_themes_and_on_a_telephone(opened):
    page, _, wrong = opened
    page.evaluate(ASK, [png(photographs()[0])])
    page.click("#try-layers summary")
    page.wait_for_selector("[data-layer=fc7] li")
    for _ in range(2):
        page.wait_for_function("""() => {  // until the sheet and the page's class tell of one theme
            const dark = document.querySelector('html.quarto-dark, body.quarto-dark') !== null;
            return dark === (getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128); }""")
        found = page.evaluate(CONTRAST)
        assert len(found) > 40 and not [line for line in found if line[0] < 4.5]
        page.locator(".quarto-color-scheme-toggle").first.click()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1400, "height": 900})
    page.click("#try-layers summary")
    assert not wrong


# ---------------------------------------------------------------- what is fetched

def test_nothing_is_fetched_before_the_click_and_nothing_after_the_network(opened, site):
    "The last test of this page: all that came before was done offline, and asked for nothing."
    page, asked, wrong = opened
    assert not [url for url in asked["before"] if ".onnx" in url or "onnxruntime" in url]
    assert {urlsplit(url).netloc for url in asked["after"]} == {urlsplit(site).netloc, "cdn.jsdelivr.net"}
    assert sorted(url.rpartition("/")[2] for url in asked["after"]) == [
        "alexnet.onnx", "ort-wasm-simd-threaded.wasm", "ort.wasm.bundle.min.mjs"]
    assert all("?" not in url for url in asked["after"])
    assert page.evaluate("navigator.onLine") is False and asked["since"] == []
    assert not wrong


# ---------------------------------------------------------------- when it cannot

def spoilt(content: bytes) -> bytes: return content[:-1] + bytes([content[-1] ^ 1])


def missing(route): route.fulfill(status=503, headers={"access-control-allow-origin": "*"})


@pytest.mark.parametrize("address, answer, words", [
    (f"{CDN}*/**", lambda route: route.abort(), "could not be fetched from cdn.jsdelivr.net"),
    (f"{CDN}*/**", missing, "cdn.jsdelivr.net said 503"),
    (f"{CDN}*/**/*.mjs", lambda route: from_npm(route, change=spoilt), "not the file that it should be"),
    ("**/alexnet.onnx", lambda route: route.fulfill(status=404), "alexnet.onnx could not be fetched"),
    ("**/alexnet.onnx", lambda route: route.fulfill(body=b"no graph"), "this browser cannot run it"),
], ids=["no connection", "CDN down", "CDN changed", "no network", "spoilt network"])
def test_what_cannot_be_fetched_is_said_and_can_be_tried_again(address, answer, words, site, chromium):
    with tab(chromium) as (page, _):
        page.route(f"{CDN}**", from_npm)
        page.route(address, answer)
        page.goto(f"{site}/try_it.html")
        page.click("#try-fetch")
        page.wait_for_selector("#try-status.try-wrong", timeout=LONG)
        assert words in page.inner_text("#try-status")
        assert page.is_enabled("#try-fetch") and page.is_disabled("#try-camera")


def test_without_webassembly_it_says_so(site, chromium):
    with tab(chromium) as (page, wrong):
        page.add_init_script("delete window.WebAssembly")
        page.goto(f"{site}/try_it.html")
        page.click("#try-fetch")
        page.wait_for_selector("#try-status.try-wrong")
        assert "no WebAssembly" in page.inner_text("#try-status") and not wrong


def test_without_javascript_the_page_can_be_read(site, chromium):
    with tab(chromium, java_script_enabled=False) as (page, wrong):
        page.goto(f"{site}/try_it.html")
        assert "switched off here" in page.inner_text("#try-it") and page.locator("#try-it img").count() == 10
        assert not wrong
