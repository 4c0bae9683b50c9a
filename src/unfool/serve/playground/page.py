"""The page, in Gradio: its widgets, and what happens when a button is pressed."""

from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from unfool.runtime.optional import require
from unfool.serve.batcher import ModelFailed, Overloaded
from unfool.serve.limits import Refused
from unfool.serve.playground import pictures
from unfool.serve.playground.lab import Attacked, Compared, Lab, Picture
from unfool.serve.playground.settings import EOT, Settings, known, to_seed

gr: Any = require("gradio", "web")
FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
MAX_WAITING = 32  # events of all visitors that may wait
UPLOAD_SECONDS = 600  # seconds after which an uploaded file that was not read is deleted
ALL = "one of each class"
LINK = """(query) => {
  const link = new URL(query, window.location.href);
  window.history.replaceState(null, '', link);
  return link.href;
}"""


def mount(app: FastAPI, lab: Lab, votes: int) -> Callable[[], None]:
    """Mount the page at `/` of the service, and return a function that ends its open streams.

    Args:
        app: The service; its own paths do not change.
        lab: The model to try.
        votes: Initial number of passes that vote.
    """
    css = resources.files("unfool.serve.playground").joinpath("playground.css").read_text("utf-8")
    page = Page(lab, votes).blocks
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=4, api_open=False)
    _refuse_named_files(page)
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO)
    theme = theme.set(  # Gradio's own colors have too little contrast on white
        body_text_color_subdued="*neutral_600", button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )  # fmt: skip
    gr.mount_gradio_app(
        app, page, path="/", footer_links=[], run_history=False, ssr_mode=False, mcp_server=False,
        enable_monitoring=False, pwa=False, show_error=False, max_file_size=lab.limits.body,
        theme=theme, css=css,
    )  # fmt: skip
    mounted: Any = app.routes[-1]
    return mounted.app.stop_event.set


def _refuse_named_files(page: Any) -> None:
    """Accept only uploaded files: no paths of other files on the server, and no URLs.

    Gradio checks paths only on pages that it launched itself, and it fetches URLs.
    """
    page.has_launched = True
    for block in page.blocks.values():
        cache = Path(block.GRADIO_CACHE).resolve()

        async def uploaded(path: str | None, cache: Path = cache) -> str | None:
            if path is None or cache in Path(path).resolve().parents:
                return path
            raise ValueError("the file is not one that was uploaded here: upload it again")

        block.async_move_resource_to_block_cache = uploaded


class Page:
    """The widgets of the page, and what they do.

    Args:
        lab: The model to try.
        votes: The initial number of passes that vote.
    """

    def __init__(self, lab: Lab, votes: int):
        self.lab = lab
        own = tuple(lab.choices.purifiers)[:4]
        self.first = Settings(
            votes=votes, seed=0 if lab.limits.seeds else None, eps=lab.choices.eps,
            steps=min(10, lab.limits.steps), purifiers=own,
        )  # fmt: skip
        with gr.Blocks(
            title=f"unfool: {lab.defense.name}",
            analytics_enabled=False,
            delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS),
        ) as self.blocks:
            self.picture, self.attacked = gr.State(time_to_live=3600), gr.State(time_to_live=3600)
            self._head()
            self._choose_image()
            self._purify()
            self._attack()
            self._compare()
            self._share()
            self._wire()

    def _head(self) -> None:
        defense = self.lab.choices.defense
        behind = f"a classifier behind `{defense}`" if defense else "a classifier"
        gr.Markdown(
            f"# {self.lab.defense.name}\nPurify an image, see how the classifier votes with and "
            f"without the defense, attack it, and compare purifiers. The model is {behind}. One "
            "image shows how a defense works, but not how robust it is: measure that with `unfool "
            "evaluate`."
        )

    def _choose_image(self) -> None:
        lab = self.lab
        gr.Markdown("## 1. Choose an image")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.numbers = gr.State(self._numbers(ALL))
                names = [ALL, *dict.fromkeys(lab.label(s.label) for s in lab.samples)]
                self.of_class = gr.Dropdown(
                    names, value=ALL, label="Samples", visible=bool(lab.samples)
                )
                self.samples = gr.Dataset(
                    components=[gr.HTML(visible=False)], samples=self._thumbnails(ALL),
                    label="Samples", show_label=False, layout="gallery", type="index",
                    samples_per_page=20, elem_id="samples", visible=bool(lab.samples),
                )  # fmt: skip
                self.file = gr.File(
                    label="Or drop an image here", file_types=["image"], height=150, elem_id="file"
                )
            with gr.Column(scale=2, min_width=240):
                self.image_html = _output("image")
        with gr.Row():
            self.votes = gr.Slider(
                1, lab.limits.votes, self.first.votes, step=1, label="Votes", min_width=240,
                info="Passes through the defense, each with its own noise",
            )  # fmt: skip
            self.seed = gr.Number(
                self.first.seed, precision=0, label="Seed", visible=lab.limits.seeds, min_width=240,
                info="The same seed gives the same result; leave it empty for fresh noise",
            )  # fmt: skip

    def _purify(self) -> None:
        gr.Markdown(f"## 2. {'Purify and classify' if self.lab.defended_model else 'Classify'}")
        self.purify = gr.Button(
            "Purify and classify" if self.lab.defended_model else "Classify", variant="primary"
        )
        self.purify_html = _output("purified")

    def _attack(self) -> None:
        lab = self.lab
        unit = " / 255" if lab.choices.unit == 255 else ""
        gr.Markdown("## 3. Attack it")
        with gr.Row():
            self.steps = gr.Slider(
                1, lab.limits.steps, self.first.steps, step=1, label="Steps of PGD", min_width=240
            )
            self.eps = gr.Slider(
                0, lab.choices.max_eps, lab.choices.eps, step=lab.choices.max_eps / 32,
                label=f"eps ({lab.choices.norm}){unit}", min_width=240,
            )  # fmt: skip
            self.eot = gr.Slider(
                1, EOT, self.first.eot, step=1, label="Draws per step (EOT)", min_width=240,
            )  # fmt: skip
        self.gradient = gr.Radio(
            [("exact, through the defense", "exact"), ("classifier only", "classifier-only")],
            value="exact", label="Gradient", visible=lab.defended_model is not None,
        )  # fmt: skip
        with gr.Row():
            self.attack = gr.Button("Attack", variant="primary")
            self.stop = gr.Button("Stop")
        self.attack_html = _output("attacked")

    def _compare(self) -> None:
        has_purifiers = bool(self.lab.choices.purifiers)
        gr.Markdown("## 4. Compare purifiers", visible=has_purifiers)
        names = [(choice.name, key) for key, choice in self.lab.choices.purifiers.items()]
        self.purifiers = gr.CheckboxGroup(
            names, value=list(self.first.purifiers), label="Purifiers", visible=has_purifiers
        )
        self.which = gr.Radio(
            ["the image", "the attacked image"],
            value="the image",
            label="Of",
            visible=has_purifiers,
        )
        self.compare = gr.Button("Compare", variant="primary", visible=has_purifiers)
        self.compare_html = _output("compared")

    def _share(self) -> None:
        gr.Markdown(
            "## 5. Keep the settings\nThe link opens this page with the same settings. The spec "
            "measures the same defense and attack on many images."
        )
        with gr.Row():
            self.link = gr.Textbox(
                label="Link", interactive=False, lines=3, max_lines=6, buttons=["copy"],
                elem_id="link", min_width=300,
            )  # fmt: skip
            self.spec = gr.Textbox(
                label="Spec", interactive=False, lines=12, max_lines=24, buttons=["copy"],
                elem_id="spec", scale=2, min_width=300,
            )  # fmt: skip

    def _wire(self) -> None:
        self.number = gr.State(0)
        self.inputs = [
            getattr(self, "number" if f.name == "sample" else f.name) for f in fields(Settings)
        ]
        image_outputs = [self.number, self.picture, self.attacked, self.image_html]
        image_outputs += [self.purify_html, self.attack_html, self.compare_html]
        options: Any = {"show_progress": "hidden", "api_visibility": "private"}
        self.of_class.input(
            self._show_samples, self.of_class, [self.samples, self.numbers], **options
        )
        self.samples.click(
            self._take_sample, [self.samples, self.numbers], image_outputs, **options
        )
        self.file.upload(self._take_file, self.file, [self.file, *image_outputs], **options)
        for button, act, output in (
            (self.purify, self._do_purify, [self.purify_html]),
            (self.attack, self._do_attack, [self.attacked, self.attack_html]),
            (self.compare, self._do_compare, [self.compare_html]),
        ):
            action_inputs = [self.picture, self.attacked, self.which, *self.inputs]
            event = button.click(
                act, action_inputs, output, trigger_mode="once", concurrency_limit=4, **options
            )
            if act == self._do_attack:
                self.stop.click(None, None, None, cancels=[event], api_visibility="private")
        opened = self.blocks.load(self._open, None, [*self.inputs, *image_outputs[1:]], **options)
        changes = [component.change for component in self.inputs]
        triggers = [opened.then, lambda *a, **k: gr.on(changes, *a, **k)]
        for trigger in triggers:
            trigger(self._link_and_spec, self.inputs, [self.link, self.spec], **options).then(
                None, [self.link], [self.link], js=LINK, api_visibility="private"
            )

    def _numbers(self, name: str) -> list[int]:
        """Return the indices of a class's samples, or of the first of each class."""
        labels = [self.lab.label(sample.label) for sample in self.lab.samples]
        if name != ALL:
            return [i for i, label in enumerate(labels) if label == name]
        return [labels.index(label) for label in dict.fromkeys(labels)]

    def _thumbnails(self, name: str) -> list[list[str]]:
        return [[pictures.thumbnail_html(self.lab, i)] for i in self._numbers(name)]

    def _show_samples(self, name: str) -> Any:
        return gr.Dataset(samples=self._thumbnails(name)), self._numbers(name)

    def _image_values(self, number: int, picture: Picture) -> list[Any]:
        return [number, picture, None, pictures.picture_html(self.lab, picture), "", "", ""]

    def _take_sample(self, index: int, numbers: list[int]) -> list[Any]:
        number = numbers[index]
        return self._image_values(number, self.lab.sample(number))

    async def _take_file(self, path: str) -> list[Any]:
        file = Path(path)
        content = file.read_bytes()
        file.unlink()
        try:
            return [None, *self._image_values(-1, await self.lab.read(content))]
        except Refused as error:
            return [None, -1, None, None, pictures.error_html(error.why), "", "", ""]

    def _open(self, request: gr.Request) -> list[Any]:  # pyright: ignore[reportInvalidTypeForm]
        """Return the values and the sample that a link asks for."""
        lab = self.lab
        settings = self.first.from_query(dict(request.query_params), lab.limits)
        number = settings.sample if 0 <= settings.sample < len(lab.samples) else 0
        eps = min(max(settings.eps, 0), lab.choices.max_eps)
        purifiers = known(settings.purifiers, lab.choices.purifiers)
        values = [
            number,
            settings.votes,
            settings.seed,
            eps,
            settings.steps,
            settings.eot,
            settings.gradient,
        ]
        if not lab.samples:
            return [*values, list(purifiers), None, None, "", "", "", ""]
        return [*values, list(purifiers), *self._image_values(number, lab.sample(number))[1:]]

    def _settings(self, values: tuple[Any, ...]) -> Settings:
        number, votes, seed, eps, steps, eot, gradient, purifiers = values
        keys = known(purifiers or (), self.lab.choices.purifiers)
        settings = Settings(
            int(number), int(votes), to_seed(seed), float(eps), int(steps), int(eot), gradient, keys
        )
        settings.check(self.lab.limits)
        return settings

    def _link_and_spec(self, *values: Any) -> tuple[str, str]:
        try:
            settings = self._settings(values)
        except (Refused, TypeError, ValueError) as error:
            return "", f"# {getattr(error, 'why', 'a setting is missing')}"
        return settings.to_query(), self.lab.choices.spec(settings)

    async def _do_purify(
        self, picture: Picture | None, attacked: Any, which: str, *values: Any
    ) -> AsyncIterator[str]:
        async def act(settings: Settings, image: Picture) -> AsyncIterator[str]:
            yield "<p role='status'>Purifying ...</p>"
            result = await self.lab.purify(image, settings)
            yield pictures.purification_html(self.lab, image, result)

        async for html in self._run_action(act, picture, values):
            yield html

    async def _do_attack(
        self, picture: Picture | None, attacked: Any, which: str, *values: Any
    ) -> AsyncIterator[Any]:
        losses: list[float] = []
        done: list[Picture] = []

        async def act(settings: Settings, image: Picture) -> AsyncIterator[str]:
            yield "<p role='status'>Starting ...</p>"
            async for result in self.lab.attack(image, settings):
                if isinstance(result, Attacked):
                    name = f"{image.name}, attacked"
                    done.append(image._replace(x=result.x.cpu(), name=name))
                    yield pictures.attacked_html(self.lab, image, result, losses)
                else:
                    losses.extend([result.loss] if result.number <= result.steps else [])
                    yield pictures.step_html(self.lab, image, result, losses)

        async for html in self._run_action(act, picture, values):
            yield (done[0] if done else gr.skip(), html)

    async def _do_compare(
        self, picture: Picture | None, attacked: Picture | None, which: str, *values: Any
    ) -> AsyncIterator[str]:
        async def act(settings: Settings, image: Picture) -> AsyncIterator[str]:
            if not settings.purifiers:
                raise Refused(400, "choose at least one purifier")
            results: list[Compared] = []
            yield pictures.compared_html(self.lab, image, results, settings.purifiers)
            async for result in self.lab.compare(image, settings):
                results.append(result)
                yield pictures.compared_html(self.lab, image, results, settings.purifiers)

        if which != "the image" and attacked is None:
            yield pictures.error_html("there is no attacked image yet: click Attack first")
            return
        async for html in self._run_action(
            act, picture if which == "the image" else attacked, values
        ):
            yield html

    async def _run_action(
        self,
        act: Callable[[Settings, Picture], AsyncIterator[str]],
        picture: Picture | None,
        values: tuple[Any, ...],
    ) -> AsyncIterator[str]:
        """Yield the HTML of an action; errors become one sentence without details of the server."""
        if picture is None:
            yield pictures.error_html("choose an image first")
            return
        try:
            async for html in act(self._settings(values), picture):
                yield html
        except Refused as error:
            yield pictures.error_html(error.why)
        except Overloaded as error:
            yield pictures.error_html(f"{error}, in {error.retry_after} s or so")
        except ModelFailed:
            yield pictures.error_html("the model failed on this image: see the log of the service")
        except (TypeError, ValueError):
            yield pictures.error_html("a setting is missing or not a number: fill it in")


def _output(name: str) -> Any:
    return gr.HTML("", elem_id=name, elem_classes=["page"], container=False)
