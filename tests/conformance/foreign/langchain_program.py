"""A LangChain application: a chat, a stream, file_search by the Responses API, vectors. Prints one JSON object."""

import json
import os
import sys

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

options = {"base_url": os.environ["FANO_URL"], "api_key": os.environ["FANO_KEY"], "max_retries": 0}
chat = ChatOpenAI(model=os.environ["FANO_MODEL"], **options)
store = os.environ["FANO_STORE"]
told = {}
told["invoke"] = chat.invoke("Hello").content
told["stream"] = "".join(chunk.content for chunk in chat.stream("Hello"))
searching = ChatOpenAI(model=os.environ["FANO_MODEL"], use_responses_api=True, **options).bind_tools(
    [{"type": "file_search", "vector_store_ids": [store]}]
)
reply = searching.invoke("Who paid invoice QX-7741-B?")
told["file_search"] = reply.text if isinstance(reply.text, str) else reply.text()
told["citations"] = [each for block in reply.content for each in block.get("annotations", [])]
embedder = OpenAIEmbeddings(model=os.environ["FANO_EMBEDDER"], check_embedding_ctx_length=False, **options)
told["embed"] = [len(each) for each in embedder.embed_documents(["One", "Two"])]
sys.stdout.write(json.dumps(told, default=str))
