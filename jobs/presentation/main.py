"""Show a dataset as one page. It is written beside the dataset, never into it: a seal holds for ever."""

from jobs.command.errors import UsageError
from jobs.presentation import report
from jobs.presentation.settings import ShowSettings
from pipelines.dataset import reader
from pipelines.storage.folder import Folder


def main(settings: ShowSettings) -> None:
    folder = Folder(settings.dataset)
    index = reader.open_sealed(folder)
    output = settings.output or f"{settings.dataset}.html"
    place, _, name = output.rpartition("/")
    if not name.endswith(".html"):
        raise UsageError(f"--output {output}: must end with .html")
    if not place.partition("://")[2 if "://" in output else 0] and not output.startswith("/"):
        raise UsageError(f"--output {output}: no folder or bucket; name a file")
    if f"{place}/".startswith(f"{folder.url}/"):
        raise UsageError(f"--output {output}: inside the dataset, which is sealed; name a file beside it")
    page = report.render_html(folder, index, settings.shards)
    Folder(place or "/").write(name, page)
    print(f"show: {folder}: {index.samples:,} images on one page, {len(page) / 1e6:,.1f} MB: {output}")
