"""The language of the texts: it is inferred, and words never spoil the search by meaning."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg
import pytest

from filled_tables import Entry, Library, embed
from qwen3_triton_ingest.config import GatewayOptions
from qwen3_triton_ingest.search import Searcher, create_text_index, find_text_index_for
from qwen3_triton_ingest.search.text_access import find_text_access

# Each language's own words for the same: short texts, a part of them in two languages.
TEXTS = {
    "german": [
        "Der Mond umkreist die Erde, und die Sonne beleuchtet nur einen Teil von ihm.",
        "Wenn das Wasser gefriert, dehnt es sich aus, und das Eis schwimmt auf dem See.",
        "Fledermäuse finden ihre Beute in der Nacht mit dem Echo ihrer Rufe.",
        "Die Lava ist geschmolzenes Gestein, das aus einem Vulkan fließt und dann erstarrt.",
    ],
    "french": [
        "La Lune tourne autour de la Terre et le Soleil n'en éclaire qu'une partie.",
        "Quand l'eau gèle, elle se dilate, et la glace flotte sur le lac.",
        "Les chauves-souris trouvent leur proie dans la nuit avec l'écho de leurs cris.",
        "La lave est une roche fondue qui coule d'un volcan et qui devient dure.",
    ],
    "russian": [
        "Луна вращается вокруг Земли, и Солнце освещает только её часть.",
        "Когда вода замерзает, она расширяется, и лёд плавает на озере.",
        "Летучие мыши находят добычу ночью по эху от своих криков.",
        "Лава — это расплавленная порода, которая вытекает из вулкана и потом застывает.",
    ],
    "simple": [  # Czech and Chinese, for which PostgreSQL has no configuration
        "Měsíc obíhá kolem Země a Slunce osvětluje jen jeho část.",
        "Když voda zamrzne, roztáhne se a led plave na jezeře.",
        "蝙蝠在夜里用自己叫声的回声寻找猎物。",
        "熔岩是从火山流出来的熔化的岩石。",
    ],
    "english": [
        "Whales, dolphins: mammals.",
        "Hydraulic pump E-42, 300 bar",
        "Steel tubes 12 mm",
        "Spare filters",
    ],
}


@pytest.mark.parametrize("config", TEXTS)
def test_the_configuration_is_that_of_the_texts_language(
    config: str, database_url: str, library: Library, tmp_path: Path
) -> None:
    entries = [
        Entry(uuid.uuid5(uuid.NAMESPACE_OID, text), text[:9], text) for text in TEXTS[config]
    ]
    table = embed(library.gateway_url, entries, tmp_path / "texts.npz").fill(database_url, "notes")
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert find_text_access(connection, table).config == config
        assert find_text_index_for(connection, table, "tsvector", "auto") is None
        assert create_text_index(connection, table, "tsvector").config == config


QUESTIONS = {
    "german": ("Wie sind die Fledermäuse in der Dunkelheit auf der Jagd?", 2),
    "french": ("Comment la chauve-souris est-elle dans le noir à la chasse ?", 2),
}


@pytest.mark.parametrize("config", QUESTIONS)
def test_words_that_every_text_has_do_not_outrank_the_rare_one(
    config: str, database_url: str, library: Library, tmp_path: Path
) -> None:
    question, best = QUESTIONS[config]
    entries = [
        Entry(uuid.uuid5(uuid.NAMESPACE_OID, text), str(number), text)
        for number, text in enumerate(TEXTS[config])
    ]
    embed(library.gateway_url, entries, tmp_path / "texts.npz").fill(database_url, "notes")
    gateway = GatewayOptions(url=library.gateway_url)
    for chosen in (None, "simple"):  # also without the language's stop words
        with Searcher(database_url, "notes", gateway=gateway, text_config=chosen) as searcher:
            assert searcher.search(question, mode="text")[0].doc_id == str(best)
