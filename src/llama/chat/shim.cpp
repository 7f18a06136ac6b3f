// llama.cpp's chat templates and answer parsers behind functions that speak JSON. ffi.rs declares them in Rust.
//
// No exception leaves a function: it returns a status and gives the exception's message where the answer would be.

#include "chat.h"
#include "json-schema-to-grammar.h"
#include "llama.h"
#include "log.h"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

using json = common_json;

namespace {

enum Status : int32_t {
    DONE,
    REFUSED, // what was passed in is at fault
    FAILED,
};

struct Text {
    const char * data;
    size_t length;

    std::string str() const { return std::string(data, length); }
};

struct Sink {
    void * out;
    void (*write)(void * out, const char * text, size_t length);

    void put(const std::string & text) const { write(out, text.data(), text.size()); }
};

template <typename Work> Status guarded(Sink sink, Work work) noexcept {
    try {
        try {
            sink.put(work());
            return DONE;
        } catch (const std::bad_alloc &) {
            sink.put("out of memory");
        } catch (const std::exception & error) {
            sink.put(error.what());
            return REFUSED;
        } catch (...) {
            sink.put("an exception of unknown type");
        }
    } catch (...) {
    }
    return FAILED;
}

// The log of llama.cpp's common library has a thread of its own and prints what users wrote.
void silence_log() {
    static std::once_flag once;
    std::call_once(once, [] { common_log_set_verbosity_thold(-1); });
}

// llama.cpp rethrows what is wrong with a template as a bare std::exception, which says nothing.
void explain(const llama_model * model, const std::string & source) {
    const char * of_model = model ? llama_model_chat_template(model, nullptr) : nullptr;
    if (!source.empty() || of_model) {
        common_chat_template(source.empty() ? of_model : source, "", "");
    }
}

json describe(const common_chat_templates * templates) {
    const std::string tool_use = common_chat_templates_source(templates, "tool_use");
    json about = {
        {"source", common_chat_templates_source(templates)},
        // Renders a message, and so finds out whether the template can.
        {"supports_thinking", common_chat_templates_support_enable_thinking(templates)},
        {"caps", common_chat_templates_get_caps(templates)},
    };
    about["tool_use_source"] = tool_use.empty() ? json() : json(tool_use);
    return about;
}

// Whether a template is the name of one that llama.cpp has built in, as code and not as Jinja.
bool is_built_in(const std::string & source) {
    std::vector<const char *> names(llama_chat_builtin_templates(nullptr, 0));
    llama_chat_builtin_templates(names.data(), names.size());
    return std::find(names.begin(), names.end(), source) != names.end();
}

common_chat_templates_inputs inputs_of(const json & request) {
    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(request.at("messages"));
    inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
    inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(request.at("tool_choice"));
    inputs.parallel_tool_calls = request.at("parallel_tool_calls").get<bool>();
    const json & schema = request.at("json_schema");
    inputs.json_schema = schema.is_null() ? "" : schema.dump();
    inputs.grammar = request.at("grammar").get<std::string>();
    inputs.use_jinja = request.at("jinja").get<bool>();
    inputs.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    inputs.continue_final_message = common_chat_continuation_parse(request.at("continue_final_message"));
    inputs.reasoning_format = common_reasoning_format_from_name(request.at("reasoning_format"));
    inputs.enable_thinking = request.at("enable_thinking").get<bool>();
    for (const auto & [name, value] : request.at("chat_template_kwargs").items()) {
        inputs.chat_template_kwargs[name] = value.dump();
    }
    return inputs;
}

const char * name_of(common_grammar_trigger_type type) {
    switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN: return "token";
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD: return "word";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN: return "pattern";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL: return "pattern_full";
    }
    throw std::runtime_error("a grammar trigger of unknown type");
}

json to_json(const common_chat_params & params, common_chat_continuation continuation) {
    json triggers = json::array();
    for (const auto & trigger : params.grammar_triggers) {
        triggers.push_back({
            {"type", name_of(trigger.type)},
            {"value", trigger.value},
            {"token", trigger.token},
        });
    }
    return {
        {"prompt", params.prompt},
        {"generation_prompt", params.generation_prompt},
        {"grammar", params.grammar},
        {"grammar_lazy", params.grammar_lazy},
        {"grammar_triggers", triggers},
        {"preserved_tokens", params.preserved_tokens},
        {"additional_stops", params.additional_stops},
        {"supports_thinking", params.supports_thinking},
        {"thinking_start_tag", params.thinking_start_tag},
        {"thinking_end_tags", params.thinking_end_tags},
        {"format", common_chat_format_name(params.format)},
        {"format_id", params.format},
        {"parser", params.parser},
        {"is_continuation", continuation != COMMON_CHAT_CONTINUATION_NONE},
    };
}

json to_json(const common_chat_tool_call & call) {
    return {{"id", call.id}, {"name", call.name}, {"arguments", call.arguments}};
}

json to_json(const common_chat_msg & message) {
    json calls = json::array();
    for (const auto & call : message.tool_calls) {
        calls.push_back(to_json(call));
    }
    return {
        {"role", "assistant"},
        {"content", message.content},
        {"reasoning_content", message.reasoning_content},
        {"tool_calls", calls},
    };
}

json to_json(const common_chat_msg_diff & diff) {
    json delta = {{"reasoning_content", diff.reasoning_content_delta}, {"content", diff.content_delta}};
    if (diff.tool_call_index != std::string::npos) {
        delta["tool_call"] = to_json(diff.tool_call_delta);
        delta["tool_call"]["index"] = diff.tool_call_index;
    }
    return delta;
}

std::string random_id() {
    static const std::string letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    std::random_device device;
    std::uniform_int_distribution<size_t> any(0, letters.size() - 1);
    std::string id(32, ' ');
    for (char & letter : id) {
        letter = letters[any(device)];
    }
    return id;
}

} // namespace

// What an answer has been understood as so far.
struct sf_parser {
    common_chat_parser_params params;
    common_chat_msg message;
    std::vector<std::string> tool_call_ids;

    json update(const std::string & text, bool is_partial) {
        common_chat_msg parsed = common_chat_parse(text, is_partial, params);
        json deltas = json::array();
        if (!parsed.empty()) {
            parsed.set_tool_call_ids(tool_call_ids, random_id);
            const common_chat_msg before = std::move(message);
            message = std::move(parsed);
            for (const auto & diff : common_chat_msg_diff::compute_diffs(before, message)) {
                deltas.push_back(to_json(diff));
            }
        }
        return deltas;
    }
};

extern "C" {

// `model` may be null and `source` empty. Answers with what the templates are.
int32_t sf_chat_open(const llama_model * model, Text source, Text bos, Text eos, common_chat_templates ** templates,
                     Sink sink) {
    return guarded(sink, [&] {
        silence_log();
        std::string wanted = source.str();
        if (!model && wanted.empty()) {
            wanted = "chatml"; // llama.cpp aborts
        }
        common_chat_templates_ptr opened;
        try {
            opened = common_chat_templates_init(model, wanted, bos.str(), eos.str());
        } catch (const std::exception &) {
            explain(model, wanted);
            throw;
        }
        std::string about = describe(opened.get()).dump_safe();
        *templates = opened.release();
        return about;
    });
}

void sf_chat_free(common_chat_templates * templates) { common_chat_templates_free(templates); }

int32_t sf_chat_apply(const common_chat_templates * templates, Text request, Sink sink) {
    return guarded(sink, [&] {
        auto inputs = inputs_of(json::parse(request.str()));
        inputs.use_jinja = inputs.use_jinja && !is_built_in(common_chat_templates_source(templates));
        if (!inputs.use_jinja && !inputs.tools.empty()) {
            throw std::invalid_argument("tools: expected none; without Jinja a template has no place for them");
        }
        return to_json(common_chat_templates_apply(templates, inputs), inputs.continue_final_message).dump_safe();
    });
}

// `applied` is what sf_chat_apply answered with; with `echo`, a continued message is told from its beginning.
int32_t sf_parser_open(Text applied, bool echo, sf_parser ** parser, Sink sink) {
    return guarded(sink, [&] {
        const json params = json::parse(applied.str());
        auto opened = std::make_unique<sf_parser>();
        opened->params.format = static_cast<common_chat_format>(params.at("format_id").get<int>());
        opened->params.generation_prompt = params.at("generation_prompt").get<std::string>();
        const auto source = params.at("parser").get<std::string>();
        if (!source.empty()) {
            opened->params.parser.load(source);
        }
        if (params.at("is_continuation").get<bool>() && !echo) {
            opened->message = common_chat_parse("", true, opened->params);
        }
        *parser = opened.release();
        return std::string();
    });
}

void sf_parser_free(sf_parser * parser) { delete parser; }

// `text` is the whole answer so far. Answers with what is new in the message.
int32_t sf_parser_update(sf_parser * parser, Text text, bool is_partial, Sink sink) {
    return guarded(sink, [&] { return parser->update(text.str(), is_partial).dump_safe(); });
}

int32_t sf_parser_message(const sf_parser * parser, Sink sink) {
    return guarded(sink, [&] { return to_json(parser->message).dump_safe(); });
}

int32_t sf_schema_to_grammar(Text schema, Sink sink) {
    return guarded(sink, [&] { return json_schema_to_grammar(json::parse(schema.str())); });
}

}
