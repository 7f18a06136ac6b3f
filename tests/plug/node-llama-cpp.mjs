// Greedy answers of node-llama-cpp, a line of JSON each: MODEL FLASH(0|1) TOKENS PROMPT...
import {getLlama, LlamaCompletion} from "node-llama-cpp";

const [, , modelPath, flash, maxTokens, ...prompts] = process.argv;
const gpu = process.env.NODE_LLAMA_GPU ?? false;
const llama = await getLlama({gpu, build: "never", progressLogs: false});
const model = await llama.loadModel({modelPath, gpuLayers: gpu ? "max" : 0});
const context = await model.createContext({
    contextSize: 2048,
    flashAttention: flash === "1",
    threads: 2,
    sequences: prompts.length
});
for (const prompt of prompts) {
    const completion = new LlamaCompletion({contextSequence: context.getSequence()});
    console.log(JSON.stringify(await completion.generateCompletion(prompt, {maxTokens: +maxTokens, temperature: 0})));
}
await llama.dispose();
process.exit(0);
