"""Chat templates, as transformers has them, and conversations."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import alula
from alula.compiler.program import save
from alula.host.chat import Template
from alula.host.text import TextError

DENSE = Path(str(files("alula.host.bundled"))) / "dense"
PLAIN = ("{% for message in messages %}{{ message.role }}:{{ message.content }}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant:{% endif %}")
# Forms that published templates use: loop controls, tools as JSON, namespaces, generation marks.
RICH = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system = message['content'] | trim %}
        {%- continue %}
    {%- endif %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == (1 if ns.system else 0)) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'assistant' %}{% generation %}<a>{{ message.content }}{% endgeneration %}
    {%- else %}<u>{{ ns.system }}|{{ message.content }}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=1) }}{% endif %}
{%- if add_generation_prompt %}<a>{% endif %}"""
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes é"},
        {"role": "user", "content": "so?"}]


def _files(template=None, **config):
    if template is not None:
        config["chat_template"] = template
    return {"tokenizer_config.json": json.dumps(config).encode()}


@pytest.fixture(scope="module")
def program():
    return alula.compile(DENSE)


@pytest.mark.parametrize("source", [PLAIN, RICH])
@pytest.mark.parametrize("prompt", [True, False])
def test_as_transformers(source, prompt):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tools = [{"name": "look", "text": "<é>"}]
    for messages in (TALK, [{"role": "system", "content": " be kind "}, *TALK]):
        if source is RICH and messages is not TALK:
            messages = messages[:2]
        expected = utils.render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=prompt,
            bos_token="<s>")[0]
        expected = expected[0] if isinstance(expected, list) else expected
        found = Template(_files(source, bos_token={"content": "<s>"})).render(
            messages, add_generation_prompt=prompt, tools=tools)
        assert found == expected


def test_sources():
    """A file of its own comes first, then the configuration's, of several the default."""
    given = _files([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}])
    assert Template(given).render([]) == "d"
    assert Template({**given, "chat_template.jinja": b"file"}).render([]) == "file"
    assert Template(given, "own").render([]) == "own"


@pytest.mark.parametrize("source, message", [
    ("{% if %}", "the chat template must be readable by jinja2: "),
    ("{{ raise_exception('no system role') }}",
     "the chat template does not take these messages: no system role"),
    ("{{ messages.append(1) }}", "the chat template does not take these messages: access to"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}",
     "the chat template does not take these messages: access to attribute '__class__'"),
    ("{{ 1 / 0 }}", "the chat template does not take these messages: division by zero"),
    ("{{ messages[0].content + 1 }}", "the chat template does not take these messages: can only"),
    (None, "the model must have a chat template in its tokenizer_config.json or"),
])
def test_templates_wrong(source, message):
    with pytest.raises(TextError, match=f"^{message}"):
        Template(_files(source)).render(TALK)


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
def test_configuration_wrong(data):
    with pytest.raises(TextError, match="^tokenizer_config.json must be readable JSON: "):
        Template({"tokenizer_config.json": data})


def test_message_without_role_wrong():
    with pytest.raises(ValueError, match=r"^a message must have a role, not only \['content'\]$"):
        Template(_files(PLAIN)).render([{"content": "x"}])


def test_chat(program):
    params = alula.SamplingParams(max_tokens=8)
    with alula.LLM(program, device="golden", chat_template=PLAIN) as llm:
        one = llm.chat(TALK, params)
        assert one[0].prompt.endswith("user:so?\nassistant:")
        both = llm.chat([TALK, TALK[:1]], params)
        assert both[0].text == one[0].text and len(both) == 2
        assert one[0].text == llm.generate(one[0].prompt, params)[0].text


def test_conversation(program):
    params = alula.SamplingParams(max_tokens=60)
    with alula.LLM(program, device="golden", chat_template=PLAIN) as llm:
        talk = llm.conversation("You document Python.", params)
        prompts, stream = [], llm.stream
        llm.stream = lambda prompt, params: prompts.append(prompt) or stream(prompt, params)
        first = talk.say("What is a window?")
        second = talk.say("And a logger?")
        assert [message["role"] for message in talk.messages] == [
            "system", "user", "assistant", "user", "assistant"]
        assert talk.messages[2]["content"] == first and talk.messages[4]["content"] == second
        third = talk.say("The exception")
        assert llm.statistics.cached_tokens >= 64  # of the turns before
        assert llm.text.decode(prompts[2]) == llm.template.render(talk.messages[:-1])
        llm.reset_prefix_cache()
        assert llm.generate(prompts[2], params)[0].text == third
        talk.reset()
        assert talk.messages == [{"role": "system", "content": "You document Python."}]
        for _ in talk.stream("Say more"):
            break
        assert talk.messages[-1]["role"] == "assistant"
        with pytest.raises(ValueError, match="^n must be 1 in a conversation, not 2$"):
            talk.say("x", alula.SamplingParams(n=2))


@pytest.mark.parametrize("params", [dict(stop="."), dict(max_tokens=3), dict(max_tokens=40)])
def test_conversation_however_an_answer_ends(program, params):
    """What the model reads spells what the template says, whatever the answer's last token was."""
    with alula.LLM(program, device="golden", chat_template=PLAIN) as llm:
        talk = llm.conversation(params=alula.SamplingParams(**params))
        prompts, stream = [], llm.stream
        llm.stream = lambda prompt, params: prompts.append(prompt) or stream(prompt, params)
        for line in ("Note that", "If the", "Return"):
            talk.say(line)
            assert llm.text.decode(prompts[-1], special=True) == llm.template.render(
                talk.messages[:-1])


def test_conversation_without_template_wrong(program):
    with alula.LLM(program, device="golden") as llm:
        with pytest.raises(TextError, match="^the model must have a chat template"):
            llm.conversation()


def _chat(*arguments, text):
    return subprocess.run([sys.executable, "-m", "alula.host.cli", "chat", *map(str, arguments)],
                          input=text, capture_output=True, text=True, timeout=300, check=False)


def test_command(program, tmp_path):
    """Lines from a pipe: each gets its answer, /reset forgets, /exit ends."""
    path, template = tmp_path / "dense.alula", tmp_path / "plain.jinja"
    save(program, path)
    template.write_text(PLAIN)
    done = _chat(path, "--template", template, "--max-new-tokens", 6, "--device", "golden",
                 text="A window\nA window\n/reset\n\nA window\n/exit\nnever\n")
    assert done.returncode == 0, done.stderr
    with alula.LLM(program, device="golden", chat_template=PLAIN) as llm:
        talk = llm.conversation(params=alula.SamplingParams(max_tokens=6))
        answers = [talk.say("A window"), talk.say("A window")]
    assert done.stdout == "".join(f"{answer}\n" for answer in [*answers, answers[0]])
    assert "golden: runs dense" in done.stderr
    done = _chat(path, "--template", template, "--max-new-tokens", 2000, text="a\nb\n")
    assert done.returncode == 0 and done.stdout == "\n\n"
    assert " ".join(done.stderr.split()).count("larger --context; /reset begins anew") == 2
    done = _chat(path, "--device", "golden", text="hello\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("alula: the model must have a chat template")
