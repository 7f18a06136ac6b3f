// Greedy answers of llama.node, a line of JSON each: MODEL FLASH(0|1) TOKENS PROMPT...
import {createRequire} from "module";

const {loadModel} = createRequire(import.meta.url)("@fugood/llama.node");
const [, , model, flash, tokens, ...prompts] = process.argv;
const context = await loadModel({
    model, n_ctx: 2048, n_threads: 2, n_gpu_layers: 0, use_mmap: true, flash_attn_type: flash === "1" ? "on" : "off"
});
for (const prompt of prompts) {
    const {text} = await context.completion({prompt, n_predict: +tokens, temperature: 0, top_k: 1});
    console.log(JSON.stringify(text));
}
await context.release();
process.exit(0);
