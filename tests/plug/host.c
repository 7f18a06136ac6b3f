// A program that loads llama.cpp as a library and knows nothing of StepFlow: greedy tokens for prompts side by side.
//   host MODEL FLASH(0|1|2) TOKENS UNIFIED(0|1) PROMPT...      2 takes Q8_0 caches with flash attention
// Prints a line of token numbers for each prompt; with HOST_SECOND another for each by the model of this name, which answers at
// the same time.
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

// A model that answers all prompts, in a context of its own.
struct answers {
    struct llama_model *model;
    struct llama_context *context;
    struct llama_batch batch;
    int n_vocab, n_prompts, n_predict, position[16], next[16], *out;
};

static int open_model(struct answers *a, const char *path, int flash, int unified, char **prompts) {
    a->model = llama_model_load_from_file(path, llama_model_default_params());
    if (!a->model) return 1;
    const struct llama_vocab *vocab = llama_model_get_vocab(a->model);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 2048 * a->n_prompts;
    params.n_seq_max = a->n_prompts;
    params.n_threads = params.n_threads_batch = 1;  // tests run side by side, and threads that wait spin
    params.kv_unified = unified;
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (flash == 2) params.type_k = params.type_v = GGML_TYPE_Q8_0;
    a->context = llama_init_from_model(a->model, params);
    if (!a->context) return 1;
    a->batch = llama_batch_init(2048, 0, 1);
    a->n_vocab = llama_vocab_n_tokens(vocab);
    a->out = calloc((size_t)a->n_prompts * (size_t)a->n_predict, sizeof *a->out);
    for (int s = 0; s < a->n_prompts; s++) {
        llama_token tokens[2048];
        int n = llama_tokenize(vocab, prompts[s], (int)strlen(prompts[s]), tokens, 2048, true, true);
        if (n < 1) return 1;
        a->batch.n_tokens = 0;
        for (int i = 0; i < n; i++) add(&a->batch, tokens[i], i, s, i == n - 1);
        if (llama_decode(a->context, a->batch)) return 1;
        a->position[s] = n;
        a->next[s] = greedy(a->context, n - 1, a->n_vocab);
    }
    return 0;
}

// As where a context is full: the first ten tokens behind the fourth go.
static void shift(struct answers *a) {
    for (int s = 0; s < a->n_prompts; s++) {
        llama_memory_seq_rm(llama_get_memory(a->context), s, 4, 14);
        llama_memory_seq_add(llama_get_memory(a->context), s, 14, -1, -10);
        a->position[s] -= 10;
    }
}

// One more token of every answer.
static int step(struct answers *a, int i) {
    a->batch.n_tokens = 0;
    for (int s = 0; s < a->n_prompts; s++) {
        a->out[s * a->n_predict + i] = a->next[s];
        add(&a->batch, a->next[s], a->position[s]++, s, 1);
    }
    if (llama_decode(a->context, a->batch)) return 1;
    for (int s = 0; s < a->n_prompts; s++) a->next[s] = greedy(a->context, s, a->n_vocab);
    return 0;
}

static void close_model(struct answers *a) {
    for (int s = 0; s < a->n_prompts; s++)
        for (int i = 0; i < a->n_predict; i++)
            printf("%d%c", a->out[s * a->n_predict + i], i + 1 < a->n_predict ? ' ' : '\n');
    free(a->out);
    llama_batch_free(a->batch);
    llama_free(a->context);
    llama_model_free(a->model);
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int flash = atoi(argv[2]), n_predict = atoi(argv[3]), unified = atoi(argv[4]);
    llama_log_set(quiet, NULL);
    llama_backend_init();
    ggml_backend_load_all();  // what GGML_BACKEND_PATH names, too
    const char *library = getenv("HOST_ATTACHES"), *second = getenv("HOST_SECOND");
    if (library) {
        void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        int (*attach)(void) = handle ? (int (*)(void))dlsym(handle, "stepflow_attach") : NULL;
        if (!attach || attach() == 0) return 1;
        dlclose(handle);
    }
    const char *paths[2] = {argv[1], second};
    struct answers answers[2] = {0};
    int n_models = second ? 2 : 1;
    for (int m = 0; m < n_models; m++) {
        answers[m].n_prompts = argc - 5;
        answers[m].n_predict = n_predict;
        if (open_model(&answers[m], paths[m], flash, unified, argv + 5)) return 1;
    }
    for (int i = 0; i < n_predict; i++)
        for (int m = 0; m < n_models; m++) {
            if (getenv("HOST_SHIFTS") && i == n_predict / 2) shift(&answers[m]);
            if (step(&answers[m], i)) return 1;
        }
    for (int m = 0; m < n_models; m++) close_model(&answers[m]);
    llama_backend_free();
    return 0;
}
