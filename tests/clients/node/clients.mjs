// How each Node program is pointed at the gateway: `node clients.mjs NAME URL DOCUMENTS QUERY`
// prints the vectors as JSON.

const MODEL = "qwen3-nano";
const QUERY_MODEL = `${MODEL}-query`;
const KEY = "unused";

const clients = {
  async openai(url, documents, query) {
    const { default: OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: KEY });
    const found = await client.embeddings.create({ model: MODEL, input: documents });
    const asked = await client.embeddings.create({ model: QUERY_MODEL, input: query });
    return { documents: found.data.map((item) => item.embedding), query: asked.data[0].embedding };
  },

  async langchain_openai(url, documents, query) {
    const { OpenAIEmbeddings } = await import("@langchain/openai");
    const [indexer, asker] = [MODEL, QUERY_MODEL].map(
      (model) =>
        new OpenAIEmbeddings({ model, apiKey: KEY, configuration: { baseURL: `${url}/v1` } }),
    );
    return { documents: await indexer.embedDocuments(documents), query: await asker.embedQuery(query) };
  },

  async langchain_ollama(url, documents, query) {
    const { OllamaEmbeddings } = await import("@langchain/ollama");
    const [indexer, asker] = [MODEL, QUERY_MODEL].map(
      (model) => new OllamaEmbeddings({ model, baseUrl: url }),
    );
    return { documents: await indexer.embedDocuments(documents), query: await asker.embedQuery(query) };
  },

  async llamaindex(url, documents, query) {
    const { OpenAIEmbedding } = await import("@llamaindex/openai");
    const [indexer, asker] = [MODEL, QUERY_MODEL].map(
      (model) => new OpenAIEmbedding({ model, apiKey: KEY, baseURL: `${url}/v1` }),
    );
    return {
      documents: await indexer.getTextEmbeddings(documents),
      query: await asker.getTextEmbedding(query),
    };
  },

  async ai(url, documents, query) {
    const { embed, embedMany } = await import("ai");
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    const provider = createOpenAICompatible({ name: "gateway", baseURL: `${url}/v1`, apiKey: KEY });
    const found = await embedMany({ model: provider.embeddingModel(MODEL), values: documents });
    const asked = await embed({ model: provider.embeddingModel(QUERY_MODEL), value: query });
    return { documents: found.embeddings, query: asked.embedding };
  },

  async ollama(url, documents, query) {
    const { Ollama } = await import("ollama");
    const client = new Ollama({ host: url });
    const listed = await client.list();
    if (listed.models[0].model !== MODEL) throw new Error(JSON.stringify(listed));
    const found = await client.embed({ model: MODEL, input: documents });
    const asked = await client.embed({ model: QUERY_MODEL, input: query });
    return { documents: found.embeddings, query: asked.embeddings[0] };
  },

  async cohere(url, documents, query) {
    const { CohereClientV2 } = await import("cohere-ai");
    const client = new CohereClientV2({ token: KEY, environment: url });
    const embed = async (texts, inputType) => {
      const answer = await client.embed({ model: MODEL, texts, inputType, embeddingTypes: ["float"] });
      return answer.embeddings.float;
    };
    return {
      documents: await embed(documents, "search_document"),
      query: (await embed([query], "search_query"))[0],
    };
  },
};

const [name, url, documents, query] = process.argv.slice(2);
console.log(JSON.stringify(await clients[name](url, JSON.parse(documents), query)));
