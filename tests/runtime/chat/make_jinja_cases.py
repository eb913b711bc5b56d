"""Writes jinja_cases.json: small templates and what the original makes of them, in the environment of transformers' chat
templates. Needs transformers 5.24.0 and jinja2 3.1.6 (no torch):

    python3 tests/runtime/chat/make_jinja_cases.py > tests/runtime/chat/jinja_cases.json

Each case: {"template", "text"}, or {"template", "error"} where the original raises.
"""

import datetime
import json
import sys

import jinja2
import transformers
import transformers.utils.chat_template_utils as utils

# The variables of all cases.
CONTEXT = {
    "s": "Hello, World",
    "u": "  \u00c4rger stra\u00dfe \u0394\u03a3 \U0001f600 ",
    "odd": "a\tb\n<c> & 'd' \"e\" \\ \u2028\u007f\u00a0\u200b",
    "lines": "one\n\n  two\nthree",
    "e": "",
    "n": 7, "m": -3, "f": 2.5, "big": 1e22, "tiny": 1.5e-7, "whole": 3.0, "yes": True, "no": False, "nothing": None,
    "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "mixed": [1, "x", None, True, 2.5, [1, 2], {"k": "v"}], "empty": [],
    "d": {"b": 1, "a": [1, {"x": None}], "C": "\u00e9\"\n"}, "nod": {}, "num": {"10": 1, "9": 2},
    "rows": [{"name": "x", "n": 3, "p": {"q": 1}}, {"name": "Y", "n": 1}, {"name": "z", "n": 2, "p": {"q": 5}}],
    "shadow": {"items": "mine", "get": 1, "other": 2},
}

EXPRESSIONS = """
s; u; odd; n; f; big; tiny; whole; yes; no; nothing; l; mixed; d; missing; e; 1e16; 123456789012345678.0; 0.1; -0.0; 1e-5; 100000.0
1 + 2; 1 - 5; 2 * 3; 7 / 2; 7 // 2; -7 // 2; 7 % 3; -7 % 3; 7 % -3; 2 ** 10; 2 ** -1; 2.5 + 1; 7.5 // 2; -7.5 % 2; 1 / 0; 1 // 0; 1 % 0
-n; +n; -f; - 1 + 2 * 3; (1 + 2) * 3; 2 ** 3 ** 2; -2 ** 2; 1 + 2 ~ 3; 'a' ~ 1 ~ none ~ true ~ missing; 'a' + 'b'; 'a' + 1; 1 + 'a'
'ab' * 3; 3 * 'ab'; [1] * 3; [1] + [2]; (1, 2) + (3,); [1] + (2,); 'a' * -1; none + 1; missing + 1; 1 + missing; true + 1; 9223372036854775807 + 0
0x1f; 0b101; 0o17; 1_000; 1_0.5e1; 1e3; 007
"a\\nb\\tc\\\\d\\x41\\u00e9\\101"; 'it\\'s'; "q\\"q"; 'a' "b" 'c'; "\\q"
1 == 1.0; 1 == true; '1' == 1; [1, 2] == [1, 2]; [1, 2] == (1, 2); {'a': 1, 'b': 2} == {'b': 2, 'a': 1}; none == none; missing == missing; missing == none
1 < 2; 1 < 2 < 3; 3 > 2 > 2; 'a' < 'b'; 'a' < 1; [1, 2] < [1, 3]; missing < 1; none < 1; 1 <= 1; 2 >= 3; 1 != 2; 'Z' < 'a'; '\u00e9' > 'z'
'lo' in s; 'x' in s; 2 in l; 5 not in l; 'b' in d; 'z' not in d; 1 in 'a1'; 'a' in none; 'a' in missing; '' in s; none in mixed; 'x' in words; 1 in true
not yes; not no and yes; yes and n; no or e or n; nothing or 'x'; missing or 'x'; yes and no or n; not missing; not e; [] or {} or 0; e and missing
1 if yes else 2; 1 if no; (1 if no) is defined; 'a' if no else 'b' if no else 'c'; (1 if yes else 2) + 1
s[0]; s[-1]; s[20]; s[1:3]; s[:-1]; s[::-1]; s[::2]; s[-3:]; s[5:2]; s[2:100]; s[::-2]; s[10:2:-3]; u[2:8]; u[::-1]; s[::0]; s['a']; s[1.5]; s[true]
l[0]; l[-1]; l[9]; l[1:]; l[::-1]; l['a']; l[:2]; d['b']; d['zz']; d.b; d.zz; d.zz.y; d['a'][1]['x']; d[0]; n[0]; none.x; none[0]; missing.x; missing[0]; missing[1:]
shadow.items is string; shadow['items']; shadow.get is string; shadow['get']; shadow.other; d.items is defined; s.title is defined; s.nope is defined; l.append is defined; d.nope is undefined
[1, 'a', none, true]; (1,); (); {'a': 1, 2: [3]}; {}; [[]]; {'a': {'b': 'c'}}; ['it\\'s', "q\\"", 'a\\nb']; [odd]; [u]; {'k': odd}; [1.0, 1e100]
s|upper; s|lower; u|upper; u|lower; u|title; u|capitalize; s|title; 'a-b c(d [e'|title; "they're o'x"|title; '\u01c6x'|capitalize; '\u0130'|lower; '\u0149'|upper; n|upper; none|upper
u.upper(); u.lower(); u.title(); u.capitalize(); "they're o'x".title(); '\u01c6 \ufb01'.title(); 'A\u03a3'.lower(); '\u03a3'.lower(); 'A\u03a3B'.lower(); "A\u03a3'".lower()
u|trim; odd|trim; '  x  '|trim; 'xxaxx'|trim('x'); n|trim; u.strip(); '\u3000a\u2003'.strip(); 'xyaxy'.strip('yx'); 'xxa'.lstrip('x'); 'axx'.rstrip('x'); ' a '.lstrip(); ' a '.rstrip(); '\u00e9a\u00e9'.strip('\u00e9'); 'a'.strip(none)
'a,b,,c'.split(','); 'a,b,,c'.split(',', 1); '  a b  c '.split(); ' a b c '.split(none, 1); ''.split(); ''.split(','); 'a'.split(''); 'a,b,c'.rsplit(',', 1); 'a--b--c'.split('--'); 'a b'.split(sep=' '); 'abc'.split('c'); 'a,b,c'.rsplit(',')
'one\\ntwo\\r\\nthree\\n'.splitlines(); 'a\u2028b'.splitlines(); ''.splitlines(); '\\n'.splitlines()
'abab'.replace('a', 'x'); 'abab'.replace('a', 'x', 1); 'ab'.replace('', '-'); 'abab'|replace('ab', 'c'); 'aaa'|replace('a', 'b', 2); 12321|replace(2, 'x'); '\u00e9\u00e9'.replace('\u00e9', 'e'); 'aaaa'.replace('aa', 'b'); ''.replace('', 'x')
'abc'.startswith('ab'); 'abc'.startswith(('x', 'a')); 'abc'.endswith('bc'); 'abc'.endswith(('x',)); 'abc'.startswith(1); 'abc'.startswith('')
'abcabc'.find('c'); 'abcabc'.rfind('c'); 'abc'.find('x'); '\u00e9a'.find('a'); 'abc'.index('b'); 'abc'.index('x'); 'aaa'.count('a'); 'aaa'.count('aa'); 'aaa'.count('')
'-'.join(['a', 'b']); '-'.join([1]); ''.join('abc'); 'abc'.removeprefix('a'); 'abc'.removesuffix('c'); 'abc'.removeprefix('x'); '12'.isdigit(); 'a1'.isdigit(); ''.isdigit(); ' '.isspace()
'{} and {}'.format(1, 'x'); '{1}{0}'.format('a', 'b'); '{a}'.format(a=2); '{{}}{}'.format(1); '{}'.format(); '{x}'.format(); '{'.format(1); '<{}>'.format(none)
d.items()|list; d.keys()|list; d.values()|list; d.get('b'); d.get('zz'); d.get('zz', 5); d.get('b', 5); d|items|list; missing|items|list; s|items|list; nod.items()|list; d.copy(); d.update({'x': 1}); d.pop('b'); l.append(1); l.pop(); d.nope(); l.count(1); l.index(2); l.sort()
d|dictsort; d|dictsort(true); d|dictsort(false, 'value'); num|dictsort; num|dictsort(reverse=true); num|dictsort(by='value'); l|dictsort
l|length; s|length; u|length; d|length; e|length; missing|length; none|length; n|length; l|count; (1, 2)|length; range(5)|length; l|map('string')|length
l|join; l|join(', '); words|join('-'); rows|join(', ', attribute='name'); mixed|join(';'); s|join('.'); missing|join; none|join; l|join(1); rows|join(', ', 'name')
l|first; l|last; empty|first; empty|last; s|first; s|last; l|reverse|list; s|reverse; l|list; s|list; d|list; missing|list; none|list; (1, 2)|list; l|map('upper')|list|last
l|sort; words|sort; words|sort(case_sensitive=true); l|sort(reverse=true); rows|sort(attribute='n')|map(attribute='name')|join; mixed|sort; l|sort(true); rows|sort(attribute='name')|map(attribute='n')|list
words|unique|list; ['a', 'A', 'b', 'a']|unique|list; ['a', 'A']|unique(true)|list; l|min; l|max; words|min; words|max; empty|min; rows|max(attribute='n'); l|sum; rows|sum(attribute='n'); empty|sum; l|sum(start=10)
rows|map(attribute='name')|list; rows|map(attribute='p.q')|list; rows|map(attribute='zz', default='?')|list; words|map('upper')|list; words|map('replace', 'a', 'x')|list; l|map('string')|join('+'); empty|map('nope')|list; words|map('nope')|list; rows|map(attribute='name')|map('lower')|list
l|select('odd')|list; l|select('gt', 1)|list; l|reject('equalto', 1)|list; mixed|select|list; mixed|select('string')|list; rows|selectattr('n', 'gt', 1)|map(attribute='name')|list; rows|selectattr('p')|list|length; rows|rejectattr('name', 'equalto', 'x')|map(attribute='n')|list; rows|selectattr('p', 'defined')|list|length; rows|selectattr('name', 'in', ['x', 'z'])|list|length; l|select('nope')|list; rows|selectattr('p.q', 'equalto', 5)|list|length
missing|default('x'); none|default('x'); none|default('x', true); ''|default('x'); ''|default('x', boolean=true); n|default('x'); missing|d('y'); missing|default; missing.x|default('z'); d.zz|default('z'); default|default('dd')
'42'|int; '42.9'|int; 'x'|int; 'x'|int(5); 42.9|int; none|int; true|int; ' 7 '|int; '-3'|int; '1e3'|int; ''|int; [1]|int; missing|int; '+5'|int
'2.5'|float; 'x'|float; 'x'|float(1.5); 3|float; none|float; true|float; '1e3'|float; 2.5|round; 3.5|round; 2.4|round; 7|round; -2.5|round; 2.675|int; -5|abs; 5.5|abs; n|abs; m|abs; 'x'|abs
lines|indent; lines|indent(2); lines|indent(2, true); lines|indent(2, first=true, blank=true); lines|indent('>> '); lines|indent(width=1, blank=true); ''|indent; ''|indent(2, true); 'a\\n'|indent; n|indent; 'a\\r\\nb'|indent(1)
s|string; n|string; l|string; none|string; missing|string; missing|string|length; d|string; true|string; f|string; mixed|string
l|tojson; d|tojson; s|tojson; odd|tojson; u|tojson; n|tojson; f|tojson; big|tojson; tiny|tojson; whole|tojson; none|tojson; yes|tojson; missing|tojson; [missing]|tojson; (1, 2)|tojson; d|tojson(indent=2); l|tojson(indent=0); d|tojson(indent='--'); empty|tojson(indent=2); nod|tojson(indent=2); d|tojson(sort_keys=true); d|tojson(separators=(',', ':')); d|tojson(indent=1, separators=(',', ' = ')); u|tojson(ensure_ascii=true); odd|tojson(ensure_ascii=true); {1: 2, none: 3, true: 4, 1.5: 5}|tojson; mixed|tojson(true); mixed|tojson(false, 4); d.items()|tojson; l|map('string')|tojson; range(3)|tojson; namespace|tojson; d|tojson(nope=1); 1e16|tojson; [[[]]]|tojson(indent=3); {'a': {'b': [1, 2]}}|tojson(indent=4)
odd|escape; odd|e|upper; 'a'|safe; 'a'|safe + '<b>'; '<b>' + 'a'|safe; 'a'|safe ~ '<b>'; ('a'|safe + "'") + '&'; n|safe; '<'|e|e; ['<']|safe
n is odd; n is even; n is divisibleby 7; n is divisibleby(2); n is number; f is number; yes is number; s is number; n is integer; yes is integer; f is float; n is float; yes is boolean; n is boolean; none is none; nothing is none; missing is none
s is string; n is string; l is string; d is mapping; l is mapping; l is iterable; s is iterable; n is iterable; d is iterable; none is iterable; missing is iterable; l is sequence; s is sequence; d is sequence; n is sequence; missing is sequence; none is sequence; l|map('string') is sequence; d.items() is sequence; d.items() is iterable; range(3) is sequence; range(3) is iterable
yes is true; yes is false; no is false; 1 is true; missing is defined; missing is undefined; s is defined; d.zz is defined; n is defined and n is odd; n is not odd; s is not string; missing is not defined; n is equalto 7; n is eq(7); n is ne 8; n is gt 3; n is lt 3; n is ge 7; n is le 6; n is in l; 3 is in l; 3 is in [3]; none is sameas none; yes is sameas true; namespace is callable; s is callable; s.upper is callable; missing is callable; n is nope; 3 == 3 is true
s is string and n is number or no; not s is string; s|length is gt 3; s|length > 3; s|upper|lower; -l|length; (l|length) - 1; l|length - 1; 1 - l|length; s.upper()|lower ~ '!'; 'a'|upper + 'b'|upper; d.a|length == 2; l | join ( ',' )
range(3)|list; range(1, 4)|list; range(0, 10, 3)|list; range(3, 0, -1)|list; range(0)|list; range(3)[1]; range(5)[1:3]|list; range(1, 2, 0)|list; range('a'); range(1000000)|length; range(-3)|list; 2 in range(3)
dict(a=1, b=2); dict(); dict({'x': 1}, y=2); namespace(a=1).a; namespace(a=1).b; namespace({'k': 2}).k; namespace(_x=1); namespace().a is defined; dict(a=1).b; dict(a=1)['a']
raise_exception('no'); strftime_now('%Y-%m-%d'); strftime_now('%d %b %Y, %A %B %H:%M:%S %j'); strftime_now('%%'); lipsum; s.__class__; s.__len__(); d.__class__; l.__add__; nope(); n(); s.nope(); s(); none(); d.b(); (1).real is defined
s|nope; (s|nope) if no else 'x'; s|batch(2)|list if no else 'y'; s if s is nope else 'z'
""".strip()

STATEMENTS = [
    "{% if n %}a{% elif e %}b{% else %}c{% endif %}", "{% if e %}a{% elif n %}b{% else %}c{% endif %}",
    "{% if e %}a{% endif %}|", "{% if missing %}a{% else %}b{% endif %}", "{% if no %}x{% elif no %}y{% elif yes %}z{% endif %}",
    "{% for x in l %}{{ x }},{% endfor %}", "{% for x in s %}{{ x }}.{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d|dictsort %}{{ k }}{% endfor %}",
    "{% for (k, v) in d.items() %}{{ k }}{% endfor %}", "{% for k, v in l %}{{ k }}{% endfor %}",
    "{% for x in missing %}a{% endfor %}|", "{% for x in none %}a{% endfor %}", "{% for x in 5 %}a{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}"
    "{{ loop.revindex0 }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}:{{ loop.index }}/{{ loop.length }} {% endfor %}",
    "{% for x in l if loop %}{% endfor %}", "{% for x in l %}{{ loop.nope }}{% endfor %}", "{% for x in l %}{{ loop['index'] }}{% endfor %}",
    "{% for x in l %}{% for y in words %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for x in [1,2,3,4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ y }}{% endfor %};{% endfor %}",
    "{% for x in [1, 2] + [3] %}{{ x }}{% endfor %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% for x in l|reverse %}{{ x }}{{ loop.last }}{% endfor %}", "{% for x in l %}{{ x }}{% endfor %}{{ x }}|",
    "{% for x in range(3) %}{% set y = x %}{% endfor %}{{ y }}|", "{% set y = 1 %}{% for x in l %}{% set y = y + x %}{{ y }} {% endfor %}{{ y }}",
    "{% set ns = namespace(n=0) %}{% for x in l %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace() %}{% set ns.a = 'x' %}{{ ns.a }}{{ ns.b }}|", "{% set d.x = 1 %}", "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set ns = namespace(l=[]) %}{% for x in l %}{% set ns.l = ns.l + [x * 2] %}{% endfor %}{{ ns.l }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = l %}", "{% set (a, b) = (1, 2) %}{{ b }}{{ a }}", "{% set a = 1, %}{{ a }}", "{% set a = 1 if no %}{{ a is defined }}",
    "{% set x %}a{{ n }}b{% endset %}{{ x }}{{ x|length }}", "{% set x | upper %}ab{% endset %}{{ x }}",
    "{% set x | replace('a', 'b') | upper %}aa{% endset %}{{ x }}", "{% set x %}{% set y = 1 %}{% endset %}{{ y is defined }}",
    "{% if yes %}{% set z = 5 %}{% endif %}{{ z }}", "{% for x in l %}{% if loop.first %}{% set q = x %}{% endif %}{{ q is defined }}{% endfor %}",
    "{% filter upper %}ab{{ s }}{% endfilter %}", "{% filter trim|upper %}  ab {% endfilter %}|", "{% filter indent(2) %}a\nb{% endfilter %}",
    "{% macro m(a, b=2, c='x') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c='y') }}{{ m(b=5, a=6) }}",
    "{% macro m(a) %}{{ a }}|{{ a is defined }}{% endmacro %}{{ m() }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=1) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "{% macro m() %}{{ n }}{% set n = 9 %}{{ n }}{% endmacro %}{{ m() }}{{ n }}",
    "{% macro m() %}{{ later }}{% endmacro %}{% set later = 5 %}{{ m() }}", "{{ m() }}{% macro m() %}x{% endmacro %}",
    "{% macro m(k) %}{% if k > 0 %}{{ k }}{{ m(k - 1) }}{% endif %}{% endmacro %}{{ m(5) }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{% for x in l %}{{ m(x * 2) }},{% endfor %}", "{% macro m() %}  a  {% endmacro %}[{{ m()|trim }}]",
    "{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m is defined }}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{{ n }}{% endcall %}",
    "{% macro m(t) %}{{ t }}<{{ caller('v') }}>{% endmacro %}{% call(x) m('q') %}{{ x }}{% endcall %}",
    "{% generation %}a{{ n }}{% endgeneration %}b", "{% generation %}{% set q = 1 %}{% endgeneration %}{{ q is defined }}",
    "{# c #}a{# {{ x }} #}b", "a{#- c -#} b", "  {% if yes %}\n  x\n  {% endif %}\ny", "a\n   {%- if yes -%}   \n  x  {%- endif -%}  \n b",
    "  {%+ if yes %}x{% endif %}", "{% if yes +%}\nx{% endif %}", "{{ 1 }}\n{{ 2 -}}\n 3", "a  {{- 1 -}}  b", "\n\n a {%- if yes %} b{% endif %}\n\n",
    "a\r\nb\rc\n", "x\n", "x\n\n", "{% raw %}{{ x }}{% if %}{% endraw %}y", "{%- raw -%}  {{ x }} {%- endraw -%}  y", "{{ '{{' }}{{ '%}' }}{{ \"}}\" }}",
    "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ [1, 2, ][1] }}{{ {'a': 1, }.a }}", "{{ 1,2 }}", "{{ (1) }}{{ (1,) }}", "{{ s }}{{ ' ' }}{{ n }}", "{{- s -}}", "{{s}}{{n}}",
    "   {# x #}\ny", " {# x #} y", "{% set x = 1 %}\n{{ x }}\n", "{% set x = 1 -%}\n\n  {{ x }}", "a{% if yes %}\nb{% endif %}", "\u00e9{% if yes %}\u00e9{% endif %}", "\u00a0{%- if yes %}x{% endif %}",
    # mistakes
    "{{ }}", "{% %}", "{% if %}{% endif %}", "{% if yes %}", "{% endif %}", "{% for x in l %}", "{% for in l %}{% endfor %}", "{{ 1 + }}", "{{ (1 }}", "{{ [1 }}", "{{ 1) }}", "{{ 'a }}", "{# x", "{{ x", "{% raw %}x",
    "{% nope %}", "{% set 1 = 2 %}", "{% set x %}", "{% macro m(a=1, b) %}{% endmacro %}", "{{ a b }}", "{{ a.1 }}|", "{{ l.0 }}", "{{ a. }}", "{{ a| }}", "{{ a is }}", "{% break %}", "{{ f(a=1, 2) }}", "{% set true = 1 %}",
    "{{ 1 if }}", "{% call 5 %}{% endcall %}", "{% for x in l %}{% else x %}{% endfor %}", "{{ $ }}", "{{ a ? b }}", "{% if yes %}{% else %}{% else %}{% endif %}", "{{ l[1:2:3:4] }}", "{{ l[:] }}", "{{ l[::] }}", "{{ a = 1 }}",
]


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 1, 31)


def main():
    assert (transformers.__version__, jinja2.__version__) == ("5.24.0", "3.1.6")
    utils.datetime = Fixed
    expressions = [e for line in EXPRESSIONS.split("\n") for e in line.split("; ")]
    cases = []
    for template in ["{{ %s }}" % e for e in expressions] + STATEMENTS:
        case = {"template": template}
        try:
            case["text"] = utils._compile_jinja_template(template).render(**json.loads(json.dumps(CONTEXT)))
        except Exception as error:
            case["error"] = "%s: %s" % (type(error).__name__, error)
        cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    sys.stdout.write('{"context": %s,\n"cases": [\n%s\n]}\n' % (json.dumps(CONTEXT), lines))


main()
