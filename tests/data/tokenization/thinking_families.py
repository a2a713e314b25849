# ruff: noqa: E501 (templates)
"""Chat templates of families with thinking, tools, dates, default system prompts and role checks, written to render like
the published ones of that family."""

from tests.data.tokenization.families import (
    DEEPSEEK_V3_1,
    GRANITE,
    LLAMA_3_1,
    LLAMA_3_2,
    MISTRAL_V0_3,
    QWEN_2_5,
    QWEN_3,
    QWEN_3_THINKING,
)

GPT_OSS = """\
{%- macro functions(tools) %}{{- 'namespace functions {\\n' }}{%- for tool in tools %}
    {{- 'type ' + tool.function.name + ' = (_: ' + tool.function.parameters | tojson + ') => any; // ' + tool.function.description + '\\n' }}
{%- endfor %}{{- '}' }}{%- endmacro %}
{%- if model_identity is not defined %}{%- set model_identity = 'You are ChatGPT.' %}{%- endif %}
{{- '<|start|>system<|message|>' + model_identity + '\\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\\n' }}
{{- 'Reasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') + '<|end|>' }}
{%- if messages[0].role == 'developer' or messages[0].role == 'system' %}
    {%- set developer = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set developer = '' %}{%- set loop_messages = messages %}{%- endif %}
{%- if developer or tools %}
    {{- '<|start|>developer<|message|># Instructions\\n' + developer }}{%- if tools %}{{- '\\n# Tools\\n' + functions(tools) }}{%- endif %}{{- '<|end|>' }}
{%- endif %}
{%- set last = namespace(call=none) %}
{%- for message in loop_messages %}
    {%- if message.role == 'assistant' %}
        {%- if message.tool_calls %}
            {%- if message.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif %}
            {%- set call = message.tool_calls[0].function %}{%- set last.call = call.name %}
            {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' + call.arguments | tojson + '<|call|>' }}
        {%- elif loop.last and not add_generation_prompt %}
            {%- if message.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
        {%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}{%- endif %}
    {%- elif message.role == 'tool' %}
        {%- if last.call is none %}{{- raise_exception('a result needs a call before it') }}{%- endif %}
        {{- '<|start|>functions.' + last.call + ' to=assistant<|channel|>commentary<|message|>' + message.content | tojson + '<|end|>' }}
    {%- elif message.role == 'user' %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- else %}{{- raise_exception('unknown role') }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

QWEN_3_CODER = """\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set system = 'You are Qwen, a helpful AI assistant.' %}{%- set loop_messages = messages %}{%- endif %}
{{- '<|im_start|>system\\n' + system }}{%- for tool in tools or [] %}{{- '\\n<function>' + tool | tojson + '</function>' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- for message in loop_messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\\n' + message.content | trim + '\\n' }}{%- endif %}
        {%- for tool_call in message.tool_calls %}{%- set call = tool_call.function %}
            {{- '\\n<tool_call>\\n<function=' + call.name + '>\\n' }}
            {%- for name, value in call.arguments | items %}
                {{- '<parameter=' + name + '>\\n' }}
                {{- value | tojson if value is mapping or (value is sequence and value is not string) else value | string }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

DEEPSEEK_V3 = """\
{%- set ns = namespace(system='') %}{%- for message in messages %}{%- if message.role == 'system' %}{%- set ns.system = ns.system + message.content %}{%- endif %}{%- endfor %}
{{- bos_token + ns.system }}{%- for tool in tools or [] %}{{- '\\n' + tool | tojson }}{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}
    {%- elif message.role == 'assistant' and message.tool_calls %}
        {{- '<｜Assistant｜>' + (message.content or '') + '<｜tool▁calls▁begin｜>' }}
        {%- for tool_call in message.tool_calls %}
            {%- if not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + tool_call.function.name + '\\n```json\\n' + tool_call.function.arguments | tojson + '\\n```<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
    {%- elif message.role == 'assistant' %}{{- '<｜Assistant｜>' + message.content + '<｜end▁of▁sentence｜>' }}
    {%- elif message.role == 'tool' %}{{- '<｜tool▁outputs▁begin｜>' + message.content + '<｜tool▁outputs▁end｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}"""

DEEPSEEK_V3_1_TOOLS = DEEPSEEK_V3.replace(
    "function<｜tool▁sep｜>' + tool_call.function.name + '\\n```json\\n' + tool_call.function.arguments | tojson + '\\n```<",
    "' + tool_call.function.name + '<｜tool▁sep｜>' + tool_call.function.arguments | tojson + '<",
)

MAGISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set system = 'First draft your thinking. Today is ' + strftime_now('%Y-%m-%d') + '.' %}{%- set loop_messages = messages %}{%- endif %}
{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- if message.reasoning_content %}{{- '[THINK]' + message.reasoning_content + '[/THINK]' }}{%- endif %}
        {{- message.content or '' }}
        {%- for tool_call in message.tool_calls or [] %}{{- '[TOOL_CALLS]' + tool_call.function.name + '[ARGS]' + tool_call.function.arguments | tojson }}{%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('Only user, assistant and tool roles are supported') }}{%- endif %}
{%- endfor %}"""

GEMMA_4 = """\
{%- macro value(v) %}{%- if v is string %}{{- '<|"|>' + v + '<|"|>' }}{%- elif v is boolean %}{{- 'true' if v else 'false' }}
    {%- elif v is mapping %}{{- '{' }}{%- for k, w in v | dictsort %}{{- k + ':' + value(w) }}{%- if not loop.last %}{{- ',' }}{%- endif %}{%- endfor %}{{- '}' }}
    {%- elif v is sequence %}{{- '[' }}{%- for w in v %}{{- value(w) }}{%- if not loop.last %}{{- ',' }}{%- endif %}{%- endfor %}{{- ']' }}
    {%- else %}{{- v }}{%- endif %}{%- endmacro %}
{{- bos_token }}
{%- if messages[0].role in ['system', 'developer'] %}{%- set system = messages[0].content | trim %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set loop_messages = messages %}{%- endif %}
{%- if system or tools or (enable_thinking is defined and enable_thinking) %}
    {{- '<|turn>system\\n' }}{%- if enable_thinking is defined and enable_thinking %}{{- '<|think|>' }}{%- endif %}{{- system }}
    {%- for tool in tools or [] %}{{- '<|tool>' + value(tool) + '<tool|>' }}{%- endfor %}{{- '<turn|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}{%- for message in loop_messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in loop_messages %}
    {%- if message.role == 'tool' %}{{- '<|turn>user\\n<|tool_response>' + value(message.content) + '<tool_response|><turn|>\\n' }}
    {%- else %}
        {{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
        {%- if message.role == 'assistant' and message.reasoning_content and loop.index0 > ns.last %}{{- '<|channel>thought\\n' + message.reasoning_content + '\\n<channel|>' }}{%- endif %}
        {{- (message.content or '') | trim }}
        {%- for tool_call in message.tool_calls or [] %}{{- '<|tool_call>call:' + tool_call.function.name + value(tool_call.function.arguments) + '<tool_call|>' }}{%- endfor %}
        {{- '<turn|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|turn>model\\n' }}{%- endif %}"""

GEMMA_4_LARGE = GEMMA_4.replace(
    "{{- '<|turn>model\\n' }}{%- endif %}",
    "{{- '<|turn>model\\n' }}{%- if not (enable_thinking is defined and enable_thinking) %}{{- '<|channel>thought\\n<channel|>' }}{%- endif %}{%- endif %}",
)

FUNCTION_GEMMA = (
    GEMMA_4.replace('<|"|>', "<escape>")
    .replace("<|tool_call>", "<start_function_call>")
    .replace("<tool_call|>", "<end_function_call>")
    .replace("<|turn>", "<start_of_turn>")
    .replace("<turn|>", "<end_of_turn>")
)

SMOLLM_3 = """\
{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{%- if messages[0].role == 'system' %}
    {%- if '/no_think' in messages[0].content %}{%- set mode = '/no_think' %}{%- elif '/think' in messages[0].content %}{%- set mode = '/think' %}{%- endif %}
    {%- set instructions = messages[0].content.replace('/no_think', '').replace('/think', '').rstrip() %}
{%- endif %}
{{- '<|im_start|>system\\nToday Date: ' + strftime_now('%d %B %Y') + '\\nReasoning Mode: ' + mode + '\\n' }}
{{- (instructions or 'You are SmolLM.') + '\\n' }}{%- for tool in tools or [] %}{{- tool | string + '\\n' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
        {%- if mode == '/think' %}{{- '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- else %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}{%- endif %}
        {%- endgeneration %}
    {%- elif message.role == 'tool' %}{{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- if mode == '/think' %}{{- '<|im_start|>assistant\\n' }}{%- else %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}{%- endif %}
{%- endif %}"""

GLM_4_5 = """\
[gMASK]<sop>
{%- for tool in tools or [] %}{%- if loop.first %}{{- '<|system|>\\n# Tools' }}{%- endif %}{{- '\\n' + tool | tojson }}{%- endfor %}
{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|user|>\\n' + message.content }}{%- if enable_thinking is defined and not enable_thinking %}{{- '/nothink' }}{%- endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- if loop.index0 > ns.last and message.reasoning_content %}{{- '\\n<think>' + message.reasoning_content.strip() + '</think>' }}
        {%- else %}{{- '\\n<think></think>' }}{%- endif %}
        {{- '\\n' + message.content.strip() }}
    {%- elif message.role == 'system' %}{{- '<|system|>\\n' + message.content }}
    {%- else %}{{- raise_exception('unknown role') }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- if enable_thinking is defined and not enable_thinking %}{{- '\\n<think></think>' }}{%- endif %}{%- else %}{{- '<|endoftext|>' }}{%- endif %}"""

THINKING_FAMILIES = {
    "gpt-oss": GPT_OSS,
    "qwen-3": QWEN_3,
    "qwen-3-thinking": QWEN_3_THINKING,
    "qwen-3-coder": QWEN_3_CODER,
    "qwen-2.5": QWEN_2_5,
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-v3.1": DEEPSEEK_V3_1,
    "deepseek-v3.1-tools": DEEPSEEK_V3_1_TOOLS,
    "magistral": MAGISTRAL,
    "mistral-v0.3": MISTRAL_V0_3,
    "gemma-4": GEMMA_4,
    "gemma-4-large": GEMMA_4_LARGE,
    "functiongemma": FUNCTION_GEMMA,
    "smollm-3": SMOLLM_3,
    "glm-4.5": GLM_4_5,
    "llama-3.1": LLAMA_3_1,
    "llama-3.2": LLAMA_3_2,
    "granite": GRANITE,
}
SPECIAL_TOKENS = (
    *("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *(
        "<｜tool▁outputs▁begin｜>",
        "<｜tool▁outputs▁end｜>",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[THINK]",
        "[/THINK]",
    ),
    *("[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
    *("<start_function_call>", "<end_function_call>", "<escape>", "<|endoftext|>", "<|system|>"),
)
