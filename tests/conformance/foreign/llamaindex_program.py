"""A LlamaIndex application: its own index over vectors of the server, and a chat. Prints one JSON object."""

import json
import os
import sys

from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

options = {"api_base": os.environ["FANO_URL"], "api_key": os.environ["FANO_KEY"], "max_retries": 0}
llm = OpenAILike(model=os.environ["FANO_MODEL"], is_chat_model=True, context_window=8000, **options)
embedder = OpenAILikeEmbedding(model_name=os.environ["FANO_EMBEDDER"], **options)
told = {}
told["complete"] = str(llm.complete("Hello"))
told["stream"] = "".join(each.delta or "" for each in llm.stream_complete("Hello"))
texts = ["The vault opens at noon.", "Invoice QX-7741-B was paid by Margarethe Oldenkamp."]
index = VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=embedder)
reply = index.as_query_engine(llm=llm, similarity_top_k=1).query("Who paid invoice QX-7741-B?")
told["query"] = str(reply)
told["sources"] = [each.node.get_content() for each in reply.source_nodes]
sys.stdout.write(json.dumps(told))
