"""What an avatar has, in words: eleven attributes, their values, and how a caption puts each.

Of the style's 45 hair styles, 12 eyes, 23 mouths, 23 clothes, 14 glasses, 10 hats and 8 beards
those are kept that plain words tell apart, and that are still seen under every hat, behind every
pair of glasses and with every beard that is kept: short hair that a cap hides is not among them.
Colours are chosen so that hair is seen against skin and background, and a beard against skin.

Left and right are those of the picture.
"""

from __future__ import annotations

# {attribute: {value: what draws it}}: a component of the style, or a colour.
PARTS: dict[str, dict[str, str]] = {
    "hair": {
        "short": "short04",
        "receding": "short18",
        "side fringe": "short01",
        "wild curls": "short11",
        "bob": "long21",
        "very long": "long12",
        "pigtails": "long18",
        "side ponytail": "long06",
    },
    "hair_colour": {
        "black": "#14141c",
        "brown": "#6e3c14",
        "blond": "#fad746",
        "red": "#c8461e",
        "grey": "#9696a0",
        "blue": "#325ad2",
    },
    "eyes": {
        "looking ahead": "variant06",
        "looking left": "variant08",
        "looking right": "variant07",
        "big": "variant10",
    },
    "mouth": {
        "smile": "happy09",
        "frown": "sad01",
        "open": "happy01",
        "toothy grin": "happy12",
        "straight": "sad06",
    },
    "clothes": {
        "t-shirt": "variant03",
        "striped shirt": "variant13",
        "checked shirt": "variant06",
        "open jacket": "variant16",
        "v-neck": "variant14",
        "tank top": "variant09",
    },
    "clothes_colour": {
        "red": "#d22d2d",
        "blue": "#2d5fc8",
        "green": "#2d9646",
        "yellow": "#f5c83c",
        "purple": "#8241aa",
        "black": "#232328",
    },
    "glasses": {"none": "", "round": "light05", "narrow": "light02", "sunglasses": "dark03"},
    "hat": {"none": "", "cap": "variant07", "top hat": "variant06", "striped beanie": "variant03"},
    "beard": {"none": "", "full": "variant05", "goatee": "variant02"},
    "skin": {"light": "#ffdebe", "tan": "#dea573", "brown": "#a56941", "dark": "#482c20"},
    "background": {
        "white": "#ffffff",
        "blue": "#96cdf5",
        "green": "#aae1a0",
        "yellow": "#fff096",
        "pink": "#ffbecd",
        "purple": "#c8b4f0",
    },
}

# Colours that no attribute has.
HAT_COLOURS = {"cap": "#b42828", "top hat": "#1e1e1e", "striped beanie": "#28785a"}
PUPILS, LIPS, FRAMES = "#333333", "#d81e3a", "#191919"

# Held out are combinations of two attributes: a thing with its own colour, and two things apart.
PAIRS = (
    ("hair", "hair_colour"),
    ("clothes", "clothes_colour"),
    ("hat", "background"),
    ("glasses", "skin"),
)

# How a caption may put a value, {} being the colour. "has" is what follows "a person with", "wears"
# what follows "wearing"; each alone is a phrase of a caption that is a list.
HAIR = {
    "short": ("short {} hair", "{} hair cut short"),
    "receding": ("receding {} hair", "{} hair at the sides only"),
    "side fringe": ("a {} side fringe", "a {} fringe swept to the side"),
    "wild curls": ("wild {} curls", "{} hair in wild curls"),
    "bob": ("a {} bob", "{} hair in a bob"),
    "very long": ("very long {} hair", "{} hair that is very long"),
    "pigtails": ("{} pigtails", "{} hair in pigtails"),
    "side ponytail": ("a {} side ponytail", "{} hair in a side ponytail"),
}
CLOTHES = {
    "t-shirt": ("a {} t-shirt",),
    "striped shirt": ("a {} striped shirt", "a {} shirt with stripes"),
    "checked shirt": ("a {} checked shirt", "a {} shirt with checks"),
    "open jacket": ("an open {} jacket", "a {} jacket that is open"),
    "v-neck": ("a {} v-neck", "a {} v-neck sweater"),
    "tank top": ("a {} tank top", "a {} top with thin straps"),
}
HAS = {
    "eyes": {
        "looking ahead": ("eyes looking ahead", "a look straight ahead"),
        "looking left": ("eyes looking left", "a look to the left"),
        "looking right": ("eyes looking right", "a look to the right"),
        "big": ("big eyes", "large eyes"),
    },
    "mouth": {
        "smile": ("a smile", "a smiling mouth"),
        "frown": ("a frown", "a frowning mouth"),
        "open": ("an open mouth", "a small open mouth"),
        "toothy grin": ("a toothy grin", "a grin that shows teeth"),
        "straight": ("a straight mouth", "a mouth in a straight line"),
    },
    "beard": {
        "none": ("no beard", "a clean-shaven chin"),
        "full": ("a full beard", "a full bushy beard"),
        "goatee": ("a goatee", "a pointed goatee"),
    },
    "skin": {value: (f"{value} skin", f"a {value} skin tone") for value in PARTS["skin"]},
}
WEARS = {
    "glasses": {
        "none": ("no glasses",),
        "round": ("round glasses", "a pair of round glasses"),
        "narrow": ("narrow glasses", "a pair of narrow glasses"),
        "sunglasses": ("sunglasses", "a pair of sunglasses"),
    },
    "hat": {
        "none": ("no hat", "nothing on the head"),
        "cap": ("a cap", "a red cap"),
        "top hat": ("a top hat", "a black top hat"),
        "striped beanie": ("a striped beanie", "a green striped beanie"),
    },
}
