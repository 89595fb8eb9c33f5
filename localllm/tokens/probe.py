# ruff: noqa: RUF001 (look-alikes are what the texts are about)
"""Texts that tell pre-tokenizers apart: two of them that cut all of these alike are taken for the same."""

PROBES = (
    "Hello, world! It's a test; they'll see we've done IT'S THEY'LL WE'VE I'm you're he'd Don'T",
    "'tis 'Twas o'clock l'ventre d'accord 'sx 'llx 'REx",
    "3 33 333 3333 33333 333333 3333333 33333333 1,234.56 x1y22z333 ½ ² Ⅷ ٣٤٥٦ १२३४",
    " leading  two   three    four     five\t tab\t\ttabs\n new \n\n lines\r\n \r\n  \n\t x \n\n\n\ny   ",
    " " * 9 + "a" + " " * 17 + "b" + " " * 130 + "c" + " " * 515 + "d" + " " * 33,
    "CamelCase HTTPServer iPhone mixedCASEWords snake_case x_1 kebab-case ÉCOLE écoleÉcole ÀÉî Ǆǅǆ ʰʱ",
    "a/b //c /*d*/ e/\n/f ../g https://h.i/j?k=l&m=n#o p.q.r() <s> </t> ...!!!??? ,,;; ((([[[{{{ $+<=>^~|` -- —",
    "#tag @name !x ?y .z ,w :v ;u 'quoted' \"double\" `ticked` *star* _under_ ~tilde~ \\back a.b,c!d?e",
    "naïve café Ångström cafe\u0301 A\u030a n\u0303o \u0301x \u1e9b\u0323 \ufb01 İi\u0307 ﷺ",
    "日本語のテキスト、カタカナ。ﾊﾝｶｸ 中文文本，混合abc中文123中文 ㄅㄆㄇ 「括弧」……——",
    "한국어 텍스트 ㄱㄴㄷ \u1112\u1161\u11ab Привет, мир! ΑΒΓ αβγ Ελλάδα",
    "עברית العربية، مرحبا۔ हिन्दी नमस्ते। தமிழ் ไทยภาษา ລາວ ខ្មែរ မြန်မာ ქართული Հայերեն አማርኛ",
    "🚀🎉 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ✋🏽 ❤️ 1️⃣ \u200b\u200d\ufeff \u2028 \u00a0nbsp\u3000wide \u0085 \x00\x01\x7f",
    "def f(x: int) -> str:\n\treturn f'{x!r}'  # comment\n\n\nclass A:\n    pass\n",
    "for(int i=0;i<10;++i){a[i]+=b[i]*2;}\r\n#include <x.h>\r\nSELECT * FROM t WHERE a<>'b';--ok",
    "<sentinel:12> IMGIMGABCDZ  x    y\nby the way 12 of 34 a b c  d e'f g'H i's",
    "٣ 3a 3'b 12:34:56 2024-01-02 1e10 0xFF v1.2.3 $100 50% №5 1st 2nd H2O CO2 ①②③ 〇一二三",
    "word\nword \n word\n\nword!\n!word\n !\n\n?\r\n/\n end \t",
    "e\u0301\u0302 क्षि स्त्री ក្ខ a\u20dd ᾳͅ o\u0336k\u0336 \U00010400\U00010428 𝟘𝟙 𝔘𝔫𝔦",
)
