// A program that loads llama.cpp as a library and knows nothing of StepFlow: greedy tokens for prompts side by side.
//   host MODEL FLASH(0|1|2) TOKENS UNIFIED(0|1) PROMPT...      2 takes Q8_0 caches with flash attention
// Prints a line of token numbers for each prompt.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <ggml-backend.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int greedy(struct llama_context *context, int row, int n_vocab) {
    const float *logits = llama_get_logits_ith(context, row);
    int best = 0;
    for (int i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static void add(struct llama_batch *batch, int token, int position, int sequence, int logits) {
    int i = batch->n_tokens++;
    batch->token[i] = token;
    batch->pos[i] = position;
    batch->n_seq_id[i] = 1;
    batch->seq_id[i][0] = sequence;
    batch->logits[i] = (signed char)logits;
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int flash = atoi(argv[2]), n_predict = atoi(argv[3]), n_prompts = argc - 5;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    ggml_backend_load_all();  // what GGML_BACKEND_PATH names, too
    const char *library = getenv("HOST_ATTACHES");
    if (library) {
        void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        int (*attach)(void) = handle ? (int (*)(void))dlsym(handle, "stepflow_attach") : NULL;
        if (!attach || attach() == 0) return 1;
        dlclose(handle);
    }
    struct llama_model_params model_params = llama_model_default_params();
    struct llama_model *model = llama_model_load_from_file(argv[1], model_params);
    if (!model) return 1;
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 2048 * n_prompts;
    params.n_seq_max = n_prompts;
    params.n_threads = params.n_threads_batch = 1;  // tests run side by side, and threads that wait spin
    params.kv_unified = atoi(argv[4]);
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (flash == 2) params.type_k = params.type_v = GGML_TYPE_Q8_0;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) return 1;

    struct llama_batch batch = llama_batch_init(2048, 0, 1);
    int n_vocab = llama_vocab_n_tokens(vocab), position[16], next[16];
    int *out = calloc((size_t)n_prompts * (size_t)n_predict, sizeof *out);
    for (int s = 0; s < n_prompts; s++) {
        const char *text = argv[5 + s];
        llama_token tokens[2048];
        int n = llama_tokenize(vocab, text, (int)strlen(text), tokens, 2048, true, true);
        if (n < 1) return 1;
        batch.n_tokens = 0;
        for (int i = 0; i < n; i++) add(&batch, tokens[i], i, s, i == n - 1);
        if (llama_decode(context, batch)) return 1;
        position[s] = n;
        next[s] = greedy(context, n - 1, n_vocab);
    }
    for (int i = 0; i < n_predict; i++) {
        if (getenv("HOST_SHIFTS") && i == n_predict / 2) {
            // As where a context is full: the first ten tokens behind the fourth go.
            for (int s = 0; s < n_prompts; s++) {
                llama_memory_seq_rm(llama_get_memory(context), s, 4, 14);
                llama_memory_seq_add(llama_get_memory(context), s, 14, -1, -10);
                position[s] -= 10;
            }
        }
        batch.n_tokens = 0;
        for (int s = 0; s < n_prompts; s++) {
            out[s * n_predict + i] = next[s];
            add(&batch, next[s], position[s]++, s, 1);
        }
        if (llama_decode(context, batch)) return 1;
        for (int s = 0; s < n_prompts; s++) next[s] = greedy(context, s, n_vocab);
    }
    for (int s = 0; s < n_prompts; s++)
        for (int i = 0; i < n_predict; i++) printf("%d%c", out[s * n_predict + i], i + 1 < n_predict ? ' ' : '\n');
    free(out);
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();
    return 0;
}
